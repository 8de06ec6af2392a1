// Facts about CUDA devices, and the switch to one for the length of a call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/status.h"

namespace flash3::launch {

core::Status cuda_error(const char *what, cudaError_t error);

struct DeviceInfo {
  int32_t ordinal;
  int32_t multiprocessors;
};

// -1: the current device. FLASH3_NO_DEVICE without a driver or such a device, FLASH3_UNSUPPORTED if this build has no
// kernel for it.
core::Status usable_device(int32_t device, DeviceInfo *info);

// Makes a device current, with a context in the calling thread, and the old device again at the end. Nothing happens if
// that is so already.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard &) = delete;
  DeviceGuard &operator=(const DeviceGuard &) = delete;

  cudaError_t error() const { return error_; }

 private:
  int before_ = -1;
  bool switched_ = false;
  cudaError_t error_;
};

}  // namespace flash3::launch
