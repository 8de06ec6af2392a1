// A call that one kernel computes, with those before and behind it.
#pragma once

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "flash3.h"
#include "launch/device_info.h"

namespace flash3::launch {

// Enqueues it. params are as in launch::forward, but not core::takes_two_steps. The device is current.
core::Status forward_step(const flash3_params &params, const DeviceInfo &device, cudaStream_t stream);

}  // namespace flash3::launch
