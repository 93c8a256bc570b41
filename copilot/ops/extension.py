"""The compiled kernels: loaded on import when they are there and wanted."""

from __future__ import annotations

import os
import sys
import warnings

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _load() -> bool:
    choice = os.environ.get("COPILOT_KERNELS", "compiled")
    if choice not in ("compiled", "reference"):
        raise ValueError(f"COPILOT_KERNELS must be 'compiled' or 'reference'; got {choice!r}")
    if choice == "reference":
        return False
    try:
        import copilot._C  # noqa: F401  (registers torch.ops.copilot)
    except ImportError as error:
        warnings.warn(
            f"copilot's compiled kernels could not be loaded ({error}). They need torch 2.11 or later and the Python "
            f"they were built with; found torch {torch.__version__}, Python {sys.version.split()[0]}. Rebuild: "
            "pip install --force-reinstall --no-deps --no-build-isolation . in a checkout. The plain torch reference "
            "runs instead; COPILOT_KERNELS=reference chooses it without this warning.",
            stacklevel=2,
        )
        return False
    return True


LOADED = _load()


def applies(tensor: Tensor) -> bool:
    """Whether the compiled kernels take this tensor; the reference takes the others."""
    return LOADED and tensor.device.type == "cpu" and tensor.dtype in DTYPES
