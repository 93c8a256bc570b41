"""Builds the compiled extension copilot._C; everything else about the package stands in pyproject.toml."""

import tomllib
from pathlib import Path

import pybind11
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]

setup(
    ext_modules=[
        CppExtension(
            "copilot._C",
            sources=["csrc/torch/module.cpp"],
            include_dirs=[pybind11.get_include()],
            define_macros=[("COPILOT_VERSION", f'"{VERSION}"')],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
