"""The CUDA kernels in place of the CPU's: COPILOT_TEST_GPU=1 sends what their tests compute to the GPU and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from copilot.ops import extension


def on_gpu(value: Any) -> Any:
    """A tensor with the same strides on the GPU; a list of them; anything else as it is."""
    if isinstance(value, list):
        return [on_gpu(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).cuda()
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def on_cpu(value: Any) -> Any:
    """What an operator returned, on the CPU."""
    return value.cpu() if isinstance(value, Tensor) else value and tuple(map(on_cpu, value))


def _send(name: str, library: torch.library.Library) -> None:
    operator = getattr(torch.ops.copilot, name).default
    changed = [i for i, argument in enumerate(operator._schema.arguments) if argument.alias_info is not None]

    def run(*arguments: Any) -> Any:
        sent = [on_gpu(argument) for argument in arguments]
        result = on_cpu(operator(*sent))
        for i in changed:
            arguments[i].copy_(sent[i])
        return result

    library.impl(name, run, allow_override=True)


def load() -> torch.library.Library:
    """Replace the CPU's kernels, as long as what it returns lives.

    Raises:
        RuntimeError: the kernels for CUDA are not there.
    """
    if not extension.CUDA:
        raise RuntimeError(f"COPILOT_TEST_GPU=1 needs an extension with CUDA kernels; got {extension.built_with()}")
    library = torch.library.Library("copilot", "IMPL", "CPU")
    for name in extension.OPERATORS:
        _send(name, library)
    return library
