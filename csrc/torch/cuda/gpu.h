// What the bindings of the CUDA kernels share. Emulated (csrc/cuda/emulation.h) they take the place of the CPU's, for
// tests: `make emulate`.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "copilot/cuda.h"
#include "tensors.h"

#ifdef COPILOT_EMULATION
#define COPILOT_GPU CPU
#else
#define COPILOT_GPU CUDA
#endif

// STABLE_TORCH_LIBRARY_IMPL itself takes a macro for a key by its name.
#define COPILOT_LIBRARY_IMPL(key, m) STABLE_TORCH_LIBRARY_IMPL(copilot, key, m)

namespace copilot {

// The GPU of a tensor: current as long as this lives.
// Not seen outside of the extension, as its member is not.
class __attribute__((visibility("hidden"))) Gpu {
 public:
#ifdef COPILOT_EMULATION
  explicit Gpu(const Tensor& tensor) : device_(tensor.get_device_index()) {}
#else
  explicit Gpu(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cuda::Stream>(stream);
  }
#endif
  Gpu(const Gpu&) = delete;

  // The current one.
  cuda::Stream stream() const { return stream_; }

  // Refuses a tensor that is elsewhere.
  void check(const Tensor& tensor, const char* name) const {
#ifdef COPILOT_EMULATION
    const bool here = tensor.is_cpu();
#else
    const bool here = tensor.is_cuda() && tensor.get_device_index() == device_;
#endif
    STD_TORCH_CHECK(here, name, " must be on the GPU of the other tensors");
  }

 private:
  int32_t device_;
#ifndef COPILOT_EMULATION
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cuda::Stream stream_ = nullptr;
};

}  // namespace copilot
