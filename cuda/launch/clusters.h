// How many clusters a device holds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "launch/start.h"

namespace flash3::launch {

// Clusters of a kernel that the device, which is current, holds at once. Its multiprocessors come in groups, and some
// of a group may be left over, so these may be fewer than its multiprocessors have room for. Asked for once per kernel,
// device, and sizes of shared memory and clusters.
cudaError_t resident_clusters(const void *kernel, const Start &how, int32_t device, int32_t *clusters);

cudaLaunchAttribute cluster_attribute(const Start &how);

}  // namespace flash3::launch
