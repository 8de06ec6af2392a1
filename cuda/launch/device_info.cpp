#include "launch/device_info.h"

#include "core/architecture.h"
#include "launch/driver.h"
#include "launch/fwd.h"

namespace flash3::launch {

core::Status cuda_error(const char *what, cudaError_t error) {
  cudaGetLastError();  // not left behind for somebody else's check
  return core::error(FLASH3_CUDA_ERROR, what, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
}

core::Status usable_device(int32_t device, DeviceInfo *info) {
  int ordinal = device;
  cudaError_t error = device < 0 ? cudaGetDevice(&ordinal) : cudaSuccess;
  int major = 0, minor = 0, multiprocessors = 0;
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    return core::error(FLASH3_NO_DEVICE, "CUDA device ", device, " cannot be used: ", cudaGetErrorName(error), ", ",
                       cudaGetErrorString(error));
  }
  *info = {ordinal, multiprocessors};
  return core::check_architecture(ordinal, 10 * major + minor, FLASH3_BUILT_ARCHS);
}

core::Status device_check(int32_t device) {
  DeviceInfo info;
  return usable_device(device, &info);
}

namespace {

// A thread that has not used the GPU yet has none, and the driver then encodes no tensor maps.
bool has_context() {
  static const auto get_current = driver_function<decltype(&cuCtxGetCurrent)>("cuCtxGetCurrent");
  CUcontext context = nullptr;
  return get_current != nullptr && get_current(&context) == CUDA_SUCCESS && context != nullptr;
}

}  // namespace

DeviceGuard::DeviceGuard(int32_t device) {
  error_ = cudaGetDevice(&before_);
  if (error_ != cudaSuccess || device < 0) return;
  const bool other = device != before_;
  if (!other && has_context()) return;
  error_ = cudaSetDevice(device);
  switched_ = other && error_ == cudaSuccess;
}

DeviceGuard::~DeviceGuard() {
  // A failure here must not be found by somebody else's check.
  if (switched_ && cudaSetDevice(before_) != cudaSuccess) cudaGetLastError();
}

}  // namespace flash3::launch
