#include "launch/device_info.h"

#include "core/architecture.h"
#include "launch/fwd.h"

namespace flash3::launch {

core::Status cuda_error(const char *what, cudaError_t error) {
  cudaGetLastError();  // not left behind for somebody else's check
  return core::error(FLASH3_CUDA_ERROR, what, " failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
}

core::Status device_info(int32_t device, DeviceInfo *info) {
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
  *info = {ordinal, multiprocessors, 10 * major + minor};
  return {};
}

core::Status device_check(int32_t device) {
  DeviceInfo info;
  core::Status status = device_info(device, &info);
  if (status.ok()) status = core::check_architecture(info.ordinal, info.capability, FLASH3_BUILT_ARCHS);
  return status;
}

DeviceGuard::DeviceGuard(int32_t device) {
  error_ = cudaGetDevice(&before_);
  if (error_ == cudaSuccess && device >= 0 && device != before_) {
    error_ = cudaSetDevice(device);
    switched_ = error_ == cudaSuccess;
  }
}

DeviceGuard::~DeviceGuard() {
  if (switched_) cudaSetDevice(before_);
}

}  // namespace flash3::launch
