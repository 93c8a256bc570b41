"""Builds the compiled extension copilot._C; everything else about the package stands in pyproject.toml.

COPILOT_CUDA: "auto" builds the CUDA kernels when torch is a build for CUDA and its nvcc is there, "1" insists, "0" does
not. TORCH_CUDA_ARCH_LIST chooses the GPUs. COPILOT_SANITIZE=1 builds with AddressSanitizer and UBSan, for tests only:
see `make sanitize`. On Windows nothing is built.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
VERSION = re.search(r'__version__ = "(.+)"', Path("copilot/__init__.py").read_text())[1]
# Without vptr, which would need the type information of torch's own classes.
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]


def nvcc(option: str) -> str:
    """What nvcc prints."""
    return subprocess.run([f"{CUDA_HOME}/bin/nvcc", option], check=True, capture_output=True, text=True).stdout


def problem_with_cuda() -> str | None:
    """Why the CUDA kernels cannot be built, with the fix, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA: install one with it"
    if CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").is_file():  # torch may have guessed the folder
        return f"nvcc was not found: install the CUDA toolkit {torch.version.cuda} and set CUDA_HOME"
    found = re.search(r"release (\d+\.\d+)", nvcc("--version"))[1]
    if found.split(".")[0] != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc in {CUDA_HOME} is of CUDA {found}, torch of {torch.version.cuda}: set CUDA_HOME to a toolkit of that"
        )
    return None


def builds_cuda() -> bool:
    """Whether to build the CUDA kernels."""
    choice = os.environ.get("COPILOT_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"COPILOT_CUDA must be 'auto', '0' or '1'; got {choice!r}")
    if choice == "0":
        return False
    problem = problem_with_cuda()
    if problem is not None:
        message = f"the CUDA kernels cannot be built: {problem}"
        if choice == "1":
            sys.exit(f"COPILOT_CUDA=1, but {message}")
        print(f"copilot: for the CPU only, as {message}")
    return problem is None


def architectures() -> str:
    """The GPUs to build for: what the user wants, else all that this nvcc knows, the last as PTX for later ones too."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wanted == "native":  # the GPUs of this machine, by number, so that the binary tells which
        there = {torch.cuda.get_device_capability(gpu) for gpu in range(torch.cuda.device_count())}
        wanted = ";".join(f"{major}.{minor}" for major, minor in sorted(there))
    if not wanted:
        known = nvcc("--list-gpu-arch").split()
        ours = [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in known]
        wanted = f"{';'.join(ours)}+PTX"
    os.environ["TORCH_CUDA_ARCH_LIST"] = wanted
    return wanted


BUILDS = sys.platform != "win32"  # the kernels' vectors need GCC or Clang, torch for Windows MSVC
if not BUILDS:
    print("copilot: without compiled kernels, which need GCC or Clang: the plain torch reference runs")
CUDA = BUILDS and builds_cuda()
macros = {
    "COPILOT_VERSION": f'"{VERSION}"',
    "COPILOT_TORCH_VERSION": f'"{torch.__version__}"',
    "COPILOT_CUDA_ARCH_LIST": f'"{architectures() if CUDA else "none"}"',
    "TORCH_TARGET_VERSION": "0x020b000000000000",  # the oldest torch whose stable ABI is enough: 2.11
}
sources = [path for folder in ("cpu", "torch") for path in Path("csrc", folder).glob("*.cpp")]
# Vectors of 64 bytes are passed by inlined functions only, so that their ABI does not matter.
flags = ["-O3", "-Wall", "-Wno-psabi", "-ffp-contract=fast"]
link_flags = []
if CUDA:
    sources += [*Path("csrc/cuda").glob("*.cu"), *Path("csrc/torch/cuda").glob("*.cpp")]
    macros |= {"COPILOT_CUDA": f'"{torch.version.cuda}"', "USE_CUDA": None}
if os.environ.get("COPILOT_SANITIZE") == "1":
    flags += SANITIZE
    link_flags += SANITIZE

setup(
    ext_modules=[
        (CUDAExtension if CUDA else CppExtension)(
            "copilot._C",
            sources=sorted(map(str, sources)),
            # All of it, so that a source distribution has it too.
            depends=sorted(str(path) for path in Path("csrc").rglob("*") if path.is_file()),
            include_dirs=[
                pybind11.get_include(),
                *(str(Path("csrc", name).resolve()) for name in ("include", "cpu", "torch")),
            ],
            define_macros=list(macros.items()),
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]} if CUDA else flags,
            extra_link_args=link_flags,
        )
    ]
    if BUILDS
    else [],
    cmdclass={"build_ext": BuildExtension},
    options={"build_ext": {"force": True}},  # without ninja, too: a binary may be of other flags or another torch
)
