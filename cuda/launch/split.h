// The calls of the split-KV kernel, with the kernels before and behind it.
#pragma once

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "flash3.h"
#include "launch/device_info.h"

namespace flash3::launch {

// Enqueues a call that core::takes_split_kernel: the append, attention, and the merging of partial results. The device
// is current.
core::Status split_forward(const flash3_params &params, const DeviceInfo &device, cudaStream_t stream);

}  // namespace flash3::launch
