#!/usr/bin/env bash
# All that needs a GPU, in one call: build, tests, compute-sanitizer, benchmarks.
#
#   benchmarks/gpu.sh [folder for the results: benchmarks/results/<name of the GPU>]
#
# It wants a Python with what pyproject.toml asks for, a torch for CUDA among it, the CUDA toolkit of the same major
# version, and pytest, pytest-benchmark, hypothesis, pybind11, ninja; liger-kernel and flashinfer-python to compare with
# them. Nothing is installed: the extension is built in place. STEPS="build selfcheck" runs these steps alone, of
# build selfcheck operations gpu sanitizer benchmarks overhead; PYTHON is the interpreter. A step that fails does not
# stop the later ones, but for the build; the last line names those that did.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}

name=$("$python" -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower())')
results=${1:-benchmarks/results/$name}
# The toolkit that builds the extension builds and checks the rest.
cuda=$("$python" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "")')
export PATH="$cuda/bin:$PATH"
failed=()

run_tests() { "$python" -m pytest -q -p no:cacheprovider "$@"; }

build() {
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') \
    COPILOT_CUDA=1 "$python" setup.py --quiet build_ext --inplace &&
    "$python" -c 'import copilot; print(copilot.build_info())'
}

# Each kernel against its twin on the CPU.
selfcheck() {
  mkdir -p build
  nvcc -arch=native -std=c++20 -O3 -lineinfo -Xcompiler -Wno-psabi -Icsrc/include -Icsrc/cpu -Icsrc/cuda \
    csrc/selfcheck/selfcheck.cu csrc/cuda/*.cu csrc/cpu/*.cpp -o build/selfcheck &&
    build/selfcheck
}

# The tests of the operations, sent to the GPU, but for those of the CPU's instruction sets.
operations() {
  COPILOT_TEST_GPU=1 run_tests -m "not refuses" -k "not instruction_set" tests/test_ops_*.py tests/test_kernels_*.py
}

gpu() { run_tests -m gpu tests/test_gpu*.py; }

sanitizer() {
  local tool status=0
  for tool in memcheck racecheck synccheck; do
    echo "-- $tool"
    # All cases take minutes under racecheck.
    compute-sanitizer --tool "$tool" --error-exitcode 1 build/selfcheck "$([[ $tool == racecheck ]] && echo 10 || echo 1)" ||
      status=1
  done
  return $status
}

benchmarks() {
  local module
  for module in liger_kernel.transformers.functional flashinfer.sampling; do
    "$python" -c "import $module" 2>/dev/null || echo "Not compared with ${module%%.*}: it cannot be imported"
  done
  run_tests --benchmark-only --results "$results" \
    benchmarks/bench_{rectify,rectify_sample,mistake_cross_entropy,candidate_loss,pool_layers}.py
}

# Of a Pilot: PILOT, or SmolLM2-135M if its package is installed.
overhead() { run_tests --benchmark-only --results "$results" benchmarks/bench_overhead.py; }

for step in ${STEPS:-build selfcheck operations gpu sanitizer benchmarks overhead}; do
  echo "== $step"
  "$step" || failed+=("$step")
  if [[ "${failed[*]-}" == build ]]; then break; fi
done
if ((${#failed[@]})); then
  echo "Failed: ${failed[*]}"
  exit 1
fi
echo "All passed; benchmarks are in $results"
