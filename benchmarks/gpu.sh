#!/usr/bin/env bash
# All that needs a GPU, in one call: build, tests, compute-sanitizer, benchmarks.
#
#   benchmarks/gpu.sh [folder for the results: benchmarks/results/<name of the GPU>]
#
# It wants a Python with what pyproject.toml asks for, a torch for CUDA among it, the CUDA toolkit of the same major
# version, and pytest, pytest-benchmark, hypothesis, pybind11, ninja; liger-kernel and flashinfer-python to compare with
# them. Nothing is installed: the extension is built in place. SKIP_SANITIZER=1 leaves that step out.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}

name=$(python -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower())')
results=${1:-benchmarks/results/$name}
operations="tests/test_ops_*.py tests/test_kernels_*.py"
# The toolkit that builds the extension builds and checks the rest.
cuda=$(python -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")')
export PATH="$cuda/bin:$PATH"

echo "== Build for this GPU"
TORCH_CUDA_ARCH_LIST=$(python -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
export TORCH_CUDA_ARCH_LIST
COPILOT_CUDA=1 python setup.py --quiet build_ext --inplace
python -c 'import copilot; print(copilot.build_info())'

echo "== Each kernel against its twin on the CPU"
mkdir -p build
nvcc -arch=native -std=c++20 -O3 -lineinfo -Xcompiler -Wno-psabi -Icsrc/include -Icsrc/cpu -Icsrc/cuda \
  csrc/selfcheck/selfcheck.cu csrc/cuda/*.cu csrc/cpu/*.cpp -o build/selfcheck
build/selfcheck

echo "== Tests of the operations, sent to the GPU"
COPILOT_TEST_GPU=1 python -m pytest -q -p no:cacheprovider -m "not refuses" $operations

echo "== Tests that need a GPU"
python -m pytest -q -p no:cacheprovider -m gpu

if [[ -z "${SKIP_SANITIZER:-}" ]]; then
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer: $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 build/selfcheck
  done
fi

echo "== Benchmarks: $results"
for module in liger_kernel.transformers.functional flashinfer.sampling; do
  python -c "import $module" 2>/dev/null || echo "Not compared with ${module%%.*}: it cannot be imported"
done
for operation in rectify rectify_sample mistake_cross_entropy candidate_loss pool_layers; do
  python -m pytest -q -p no:cacheprovider "benchmarks/bench_$operation.py" --benchmark-only --results "$results"
done
