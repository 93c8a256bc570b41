"""Runs the CPU kernels of another instruction set, in a process of its own: the choice is made once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import copilot

# The package without its __init__, which would import transformers.
SCRIPT = """
import sys, types
import torch
package, calls, outputs = sys.argv[1:]
copilot = sys.modules["copilot"] = types.ModuleType("copilot")
copilot.__path__ = [package]
import copilot._C
run = lambda name, arguments: getattr(torch.ops.copilot, name)(*arguments)
torch.save([copilot._C.cpu_kernels(), *(run(*call) for call in torch.load(calls))], outputs)
"""


def outputs_with(instruction_set: str, calls: list[tuple[str, tuple[Any, ...]]], folder: Path) -> list[Any]:
    """What each call (operator, arguments) of torch.ops.copilot gives; the kernels that ran are those asked for.

    Args:
        instruction_set: what COPILOT_CPU takes, "avx2" or "portable".
        calls: operators by name, with their arguments.
        folder: for temporary files.
    """
    files = [folder / "calls.pt", folder / "outputs.pt"]
    torch.save(calls, files[0])
    command = [sys.executable, "-c", SCRIPT, Path(copilot.__file__).parent, *files]
    subprocess.run(command, check=True, env=os.environ | {"COPILOT_CPU": instruction_set})
    name, *outputs = torch.load(files[1])
    assert name == kernels_of(instruction_set)
    return outputs


def kernels_of(instruction_set: str | None = None) -> str:
    """The name of the kernels that run on this processor with COPILOT_CPU as given, or without it."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and instruction_set is None:
        return "AVX-512"
    return "AVX2" if capability in ("AVX2", "AVX512") and instruction_set != "portable" else "portable"
