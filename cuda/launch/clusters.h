// How many clusters a device holds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "launch/fwd_kernel.h"

namespace flash3::launch {

// Pairs of thread blocks of a paired kernel that the device, which is current, holds at once. Its multiprocessors come
// in groups, and one of an odd group is left over, so these may be less than half of its multiprocessors. Asked for
// once per kernel and device.
cudaError_t resident_pairs(const FwdKernel &kernel, int32_t device, int32_t *pairs);

// The launch attribute of clusters of two.
cudaLaunchAttribute pair_attribute();

}  // namespace flash3::launch
