// The Python module copilot._C. Importing it needs torch to be imported first.

#include <pybind11/pybind11.h>

#include "cpu_kernels.h"

#define COPILOT_AS_TEXT(value) #value
#define COPILOT_TEXT_OF(macro) COPILOT_AS_TEXT(macro)

#if defined(__clang__)
#define COPILOT_COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
#define COPILOT_COMPILER "GCC " __VERSION__
#else
#define COPILOT_COMPILER "unknown"
#endif

#ifndef COPILOT_CUDA
#define COPILOT_CUDA "none"
#endif

#ifdef NDEBUG
#define COPILOT_BUILD_TYPE "release"
#else
#define COPILOT_BUILD_TYPE "debug"
#endif

namespace {

// One text, so that it can be read from a binary that cannot be loaded too: see copilot/ops/extension.py.
constexpr char kBuiltWith[] =
    "copilot._C, built with\n"
    "version: " COPILOT_VERSION
    "\n"
    "torch: " COPILOT_TORCH_VERSION
    "\n"
    "python: " PY_VERSION
    "\n"
    "compiler: " COPILOT_COMPILER
    "\n"
    "cxx_standard: " COPILOT_TEXT_OF(__cplusplus) "\n"
    "build_type: " COPILOT_BUILD_TYPE
    "\n"
    "cuda: " COPILOT_CUDA
    "\n"
    "cuda_arch_list: " COPILOT_CUDA_ARCH_LIST "\n";

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = kBuiltWith;
  m.def("cpu_kernels", [] { return copilot::cpu_kernels().name; }, "The instruction set of the CPU kernels in use.");
}
