"""The compiled kernels: loaded on import when they are there and wanted, else one warning and the reference."""

from __future__ import annotations

import os
import platform
import re
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPERATORS = (
    "candidate_loss",
    "candidate_loss_backward",
    "mistake_cross_entropy",
    "mistake_cross_entropy_backward",
    "mistake_cross_entropy_backward_",
    "pool_layers",
    "rectify",
    "rectify_sample",
)
VARIABLES = {"COPILOT_KERNELS": ("compiled", "reference"), "COPILOT_CPU": ("avx512", "avx2", "portable")}
FIX = (
    "pip install 'setuptools>=77' wheel pybind11 ninja && "
    "pip install --force-reinstall --no-deps --no-build-isolation . in a checkout"
)
_PACKAGE = Path(__file__).parents[1]
_BUILT_WITH = b"copilot._C, built with\n"  # of csrc/torch/module.cpp


def built_with(package: Path = _PACKAGE) -> dict[str, str]:
    """The facts that the binary in a folder was built with, whether it can be loaded or not; empty without a binary.

    They are read from the file itself, which no copy, wheel or editable install can separate from them.
    """
    binaries = sorted(package.glob("_C.*"), key=lambda path: path.name.removeprefix("_C") not in EXTENSION_SUFFIXES)
    if not binaries:
        return {}
    _, _, facts = binaries[0].read_bytes().partition(_BUILT_WITH)
    lines = facts.partition(b"\0")[0].decode().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def _import_kernels() -> str | None:
    """Register torch.ops.copilot; what is wrong with the binary, or None."""
    try:
        import copilot._C  # noqa: F401
    except ImportError as error:
        return str(error)
    missing = [name for name in OPERATORS if not hasattr(torch.ops.copilot, name)]
    return f"the binary is of another version, without {', '.join(missing)}" if missing else None


def _message(problem: str) -> str:
    """What was built, what was found, and the fix."""
    facts = built_with()
    built = ", ".join(f"{name} {fact}" for name, fact in facts.items()) or "unknown"
    return (
        f"copilot's compiled kernels cannot be used: {problem}. Built with: {built}. Found: torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}. Fix: {FIX}. Until then the slower plain torch "
        "reference runs; COPILOT_KERNELS=reference chooses it without this warning."
    )


def _load() -> str | None:
    """Load the kernels if they are wanted; why the reference runs instead, or None."""
    for name, accepted in VARIABLES.items():
        if os.environ.get(name, accepted[0]) not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}; got {os.environ[name]!r}")
    if os.environ.get("COPILOT_KERNELS") == "reference":
        return "COPILOT_KERNELS=reference"
    problem = _import_kernels()
    if problem is not None:
        warnings.warn(_message(problem), stacklevel=2)
    return problem


NOT_LOADED_BECAUSE = _load()
LOADED = NOT_LOADED_BECAUSE is None
CUDA = LOADED and built_with().get("cuda", "none") != "none"  # an older binary says nothing of it


def applies(tensor: Tensor) -> bool:
    """Whether the compiled kernels take this tensor; the reference takes the others."""
    if not LOADED or tensor.dtype not in DTYPES:
        return False
    if tensor.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(tensor.device)
        return _run_on_gpu(gpu.major, gpu.minor)
    return tensor.device.type == "cpu"


@torch.compiler.assume_constant_result  # torch.compile looks through a cache, into what it cannot trace
def _run_on_gpu(major: int, minor: int) -> bool:
    """Whether the CUDA kernels run on a GPU of this compute capability; one warning where they do not."""
    return _look_up_gpu(major, minor)


@cache
def _look_up_gpu(major: int, minor: int) -> bool:
    architectures = built_with().get("cuda_arch_list", "none") if CUDA else "none"
    if has_code_for(architectures, major, minor):
        return True
    if major >= 8:  # for older GPUs there is no build that helps
        warnings.warn(_message(f"a GPU of compute capability {major}.{minor} needs a build for it"), stacklevel=5)
    return False


def has_code_for(architectures: str, major: int, minor: int) -> bool:
    """Whether a build for these GPUs, given as TORCH_CUDA_ARCH_LIST gives them, runs on one of a compute capability.

    Code for 8.0 runs on 8.x, for 10.0f likewise; "8.0+PTX" on all later ones, too; code for 9.0a on 9.0 alone. A name
    such as Hopper is not looked up: it may.
    """
    if architectures in ("", "none"):
        return False
    for name in architectures.replace(" ", ";").split(";"):
        number = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if number is None:
            return True
        built = int(number[1]), int(number[2])
        later = (built[0] == major and number[3] != "a") or (number[4] and not number[3])
        if built == (major, minor) or (later and built <= (major, minor)):
            return True
    return False


def adjacent(rows: Tensor) -> Tensor:
    """The tensor with adjacent elements in its last dimension: itself, or a copy."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
