"""The CUDA kernels compile for every generation of GPUs without a warning or a register spilled; emulated, they agree
with the CPU's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))
CPU_KERNELS = sorted(ROOT.glob("csrc/cpu/*.cpp"))
BINDINGS = sorted(ROOT.glob("csrc/torch/cuda/*.cpp"))
INCLUDES = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cpu", "cuda", "torch")]
NVCC = shutil.which("nvcc") or (cpp_extension.CUDA_HOME and shutil.which(f"{cpp_extension.CUDA_HOME}/bin/nvcc"))


PROGRAM = """
#include <cstdio>
#include "device.cuh"
int main() {
  std::printf("%u blocks, ", copilot::cuda::current_device().most_blocks);
  try {
    copilot::cuda::launch(+[] {}, {.blocks = (int64_t{1} << 32) + 1, .threads = 32});
  } catch (const std::exception& error) {
    std::printf("%s", error.what());
  }
}
"""


def compiled(*command: str | Path) -> str:
    """What the compiler says about a file without an error."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_kernel_compiles_without_a_spill(source: Path, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90, 100)]
    said = compiled(
        *(NVCC, "-std=c++20", "-O3", "--Werror=all-warnings", "-Xptxas=-v", "--threads=0", *targets, *INCLUDES),
        *("-c", source, "-o", tmp_path / "kernel.o"),
    )
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills
    assert set(spills) == {("0", "0")}, said
    if source.stem in ("rectify", "rectify_sample"):  # beside the slice; see kSharedBesideSlice in rectify.cuh
        shared = [int(bytes_) for bytes_ in re.findall(r"(\d+) bytes smem", said)]
        assert shared
        assert max(shared) <= 20 * 1024, said


@pytest.mark.parametrize("source", BINDINGS, ids=lambda path: path.stem)
def test_a_binding_compiles(source: Path) -> None:
    torch_headers = [f"-I{path}" for path in (*cpp_extension.include_paths(), pybind11.get_include())]
    compiled(
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror"),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
        *(*INCLUDES, *torch_headers, f"-I{sysconfig.get_path('include')}", source),
    )


def test_emulated_kernels_agree_with_their_twins(tmp_path: Path) -> None:
    """On GPUs with clusters of blocks and without, with much shared memory (9.0, 8.0) and with little (12.0)."""
    program = tmp_path / "selfcheck"
    compiled(
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-Wno-psabi", "-U_FORTIFY_SOURCE", "-DCOPILOT_EMULATION"),
        *(*INCLUDES, "-x", "c++", ROOT / "csrc" / "selfcheck" / "selfcheck.cu", *SOURCES, *CPU_KERNELS, "-o", program),
    )
    runs = [
        subprocess.Popen(
            [program, "5"],  # every fifth case: all take a minute on each
            env=os.environ | {"COPILOT_EMULATED_CAPABILITY": capability, "COPILOT_EMULATED_SHARED": str(shared * 1024)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for capability, shared in (("90", 227), ("80", 163), ("120", 99))
    ]
    for run in runs:
        said, _ = run.communicate()
        assert run.returncode == 0, said
        assert said.count(" agrees in ") == 7


def test_a_launch_asks_for_what_the_gpu_has(tmp_path: Path) -> None:
    """Clusters where the code and the GPU have them, as large as the GPU's are, and a grid within its limits."""
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(PROGRAM)
    compiled(os.environ.get("CXX", "c++"), "-std=c++20", "-DCOPILOT_EMULATION", *INCLUDES, source, "-o", program)
    for gpu, code, blocks in ((90, 90, 16), (100, 90, 16), (120, 120, 8), (120, 90, 8), (120, 80, 1), (80, 80, 1)):
        environment = os.environ | {"COPILOT_EMULATED_CAPABILITY": str(gpu), "COPILOT_EMULATED_CODE": str(code)}
        said = subprocess.run([program], env=environment, capture_output=True, text=True, check=True).stdout
        assert said == f"{blocks} blocks, rows for more than the 2^31 - 1 blocks of a launch; got 4294967297"


def test_every_operation_has_a_kernel_and_a_binding() -> None:
    operations = {path.stem for path in ROOT.glob("csrc/torch/*.cpp")} - {"module"}
    assert {path.stem for path in SOURCES} == operations
    assert {path.stem for path in BINDINGS} == operations
