// Which forward kernels this build holds.
#pragma once

#include "core/split_config.h"
#include "core/status.h"
#include "core/tile_config.h"
#include "launch/fwd_kernel.h"
#include "launch/split_kernel.h"

namespace flash3::launch {

// How many kernels a build holds at most: of two dtypes and every tile config, with and without modified scores, with
// and without lengths from device memory, and in pairs; of every cache config, with and without modified scores, and in
// pieces; nine of every split config, and two of latent attention.
inline constexpr int32_t kMostKernels =
    2 * core::kNumTileConfigs * (2 * 2 + 1) + 2 * core::kNumCacheConfigs * 3 + 2 * 9 * core::kNumSplitConfigs + 2 * 2;

// How this build computes a call: as core::route_of says, but a call that is routed for its speed alone takes whole
// tiles where the kernel for that was left out.
core::Route built_route(const flash3_params &params);

// The kernel for these params on a GPU of so many multiprocessors, or FLASH3_UNSUPPORTED with what was built.
// may_pair: clusters of two thread blocks can be launched.
core::Status find_kernel(const flash3_params &params, const core::Route &route, int32_t multiprocessors, bool may_pair,
                         const FwdKernel **kernel);

// The same for a call of the split-KV kernel.
core::Status find_split_kernel(const flash3_params &params, const SplitKernel **kernel);

}  // namespace flash3::launch
