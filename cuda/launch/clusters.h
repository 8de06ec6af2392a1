// How many clusters a device holds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "launch/start.h"

namespace flash3::launch {

// Pairs of thread blocks of a kernel that the device, which is current, holds at once. Its multiprocessors come in
// groups, and one of an odd group is left over, so these may be less than half of its multiprocessors. Asked for once
// per kernel, device and size of shared memory.
cudaError_t resident_pairs(const void *kernel, const Start &how, int32_t device, int32_t *pairs);

// The launch attribute of clusters of two.
cudaLaunchAttribute pair_attribute(Start::Pairs along);

}  // namespace flash3::launch
