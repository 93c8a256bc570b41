"""The CUDA kernels run by the CPU, in place of the CPU's own: their logic is tested where no GPU is.

COPILOT_EMULATION=1 has them loaded before the first test; COPILOT_EMULATED_CAPABILITY=80 emulates a GPU without
clusters of blocks, COPILOT_EMULATED_CODE=90 beside 120 one that runs code written for an older one, and
COPILOT_EMULATED_SHARED=101376 one whose blocks have no more bytes of shared memory.
"""

from pathlib import Path

from torch.utils import cpp_extension

from copilot.ops import extension

ROOT = Path(__file__).parents[1]


def load() -> None:
    """Build what has changed, and replace the CPU's kernels in this process.

    Raises:
        RuntimeError: the compiled operations, whose CPU kernels are replaced, are not there.
    """
    if not extension.LOADED:
        raise RuntimeError(f"COPILOT_EMULATION=1 needs the compiled kernels: {extension.NOT_LOADED_BECAUSE}")
    sources = ROOT / "csrc"
    build = ROOT / "build" / "emulation"
    build.mkdir(parents=True, exist_ok=True)
    cpp_extension.load(
        "copilot_emulation",
        sorted(map(str, sources.glob("torch/cuda/*.cpp"))),
        extra_cflags=[
            "-O2",
            "-Wall",
            "-Wno-unknown-pragmas",
            "-DCOPILOT_EMULATION",
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            "-U_FORTIFY_SOURCE",  # it takes a jump to another stack for an attack
        ],
        extra_include_paths=[str(sources / folder) for folder in ("include", "cpu", "cuda", "torch")],
        build_directory=str(build),
        is_python_module=False,
    )
