// The Python module copilot._C. Importing it needs torch to be imported first.

#include <pybind11/pybind11.h>

#include "cpu_kernels.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

#ifdef NDEBUG
constexpr const char* kBuildType = "release";
#else
constexpr const char* kBuildType = "debug";
#endif

// How this binary was built, and which of its CPU kernels this processor runs.
py::dict build_info() {
  py::dict info;
  info["version"] = COPILOT_VERSION;
  info["torch"] = COPILOT_TORCH_VERSION;
  info["cpu_kernels"] = copilot::cpu_kernels().name;
  info["cuda_arch_list"] = py::none();
  info["compiler"] = kCompiler;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["build_type"] = kBuildType;
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("build_info", &build_info, "How this extension was built."); }
