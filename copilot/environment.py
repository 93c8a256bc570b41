"""What a bug report needs: versions, device, threads and how the compiled extension was built."""

import importlib.metadata
import platform
from typing import Any

import torch

from copilot.ops import extension

_REPORTED_PACKAGES = (
    "transformer-copilot",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "lm-eval",
)


def build_info() -> dict[str, str]:
    """Which kernels run in this process, and how those of the compiled extension were built.

    `kernels` ("compiled" or "reference"); `cpu_kernels`, the instruction set in use, or `reason`, why it is the
    reference; and, where there is a binary, `version`, `torch`, `python`, `compiler`, `cxx_standard`, `build_type` and
    `cuda_arch_list` of its build.
    """
    if extension.NOT_LOADED_BECAUSE is not None:
        return {"kernels": "reference", "reason": extension.NOT_LOADED_BECAUSE, **extension.built_with()}
    import copilot._C

    return {"kernels": "compiled", "cpu_kernels": copilot._C.cpu_kernels(), **extension.built_with()}


def environment() -> dict[str, Any]:
    """The facts of this process: a key for each package, then `python`, `platform`, `device`, `threads` and `build`."""
    facts: dict[str, Any] = {name: _version(name) for name in _REPORTED_PACKAGES}
    facts["python"] = platform.python_version()
    facts["platform"] = platform.platform()
    facts["device"] = _device()
    facts["threads"] = torch.get_num_threads()
    facts["build"] = build_info()
    return facts


def environment_text() -> str:
    """`environment()` as aligned lines, ready to be pasted into a report."""
    facts = environment()
    facts.update({f"build: {key}": value for key, value in facts.pop("build").items()})
    width = max(map(len, facts))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in facts.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{names} (CUDA {torch.version.cuda})"
