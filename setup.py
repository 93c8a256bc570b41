"""Builds the compiled extension copilot._C; everything else about the package stands in pyproject.toml.

COPILOT_SANITIZE=1 builds it with AddressSanitizer and UBSan, for tests only: see `make sanitize`.
"""

import os
import tomllib
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
# Without vptr, which would need the type information of torch's own classes.
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
SANITIZERS = SANITIZE if os.environ.get("COPILOT_SANITIZE") == "1" else []

setup(
    ext_modules=[
        CppExtension(
            "copilot._C",
            sources=[str(path) for folder in ("cpu", "torch") for path in sorted(Path("csrc", folder).glob("*.cpp"))],
            include_dirs=[pybind11.get_include(), *(str(Path("csrc", name).resolve()) for name in ("include", "cpu"))],
            define_macros=[
                ("COPILOT_VERSION", f'"{VERSION}"'),
                ("COPILOT_TORCH_VERSION", f'"{torch.__version__}"'),
                ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # the oldest torch whose stable ABI is enough: 2.11
            ],
            # Vectors of 64 bytes are passed by inlined functions only, so that their ABI does not matter.
            extra_compile_args=["-O3", "-Wall", "-Wno-psabi", "-ffp-contract=fast", *SANITIZERS],
            extra_link_args=SANITIZERS,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
