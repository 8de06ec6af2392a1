// Which forward kernels this build holds.
#pragma once

#include "core/status.h"
#include "core/tile_config.h"
#include "launch/fwd_kernel.h"

namespace flash3::launch {

// How many kernels a build holds at most: of two dtypes and every tile config, with and without modified scores, with
// and without lengths from device memory.
inline constexpr int32_t kMostKernels = 2 * core::kNumTileConfigs * 2 * 2;

// The kernel for these params on a GPU of so many multiprocessors, or FLASH3_UNSUPPORTED with what was built.
core::Status find_kernel(const flash3_params &params, int32_t multiprocessors, const FwdKernel **kernel);

}  // namespace flash3::launch
