// The split-KV kernels as the host code sees them.
#pragma once

#include <cstdint>

#include "core/split_config.h"
#include "flash3.h"

namespace flash3::launch {

// How a kernel is launched, which depends on how keys are loaded.
struct SplitLaunch : core::SplitFlight {
  uint32_t shared_bytes;
};

struct SplitKernel {
  const void *function;                    // __global__ void(device::SplitArgs)
  const void *plain;                       // the same for calls that core::is_plain_decoding
  const void *sees_all_keys;               // the same for those of them that core::sees_all_keys
  const void *by_warps;                    // the same for those that are core::computed_by_warps; NULL: there are none
  const void *appends, *appends_by_warps;  // the same for those of the last two that core::appends_itself, or NULL
  // plain, sees_all_keys and by_warps for calls that are core::is_packed_decoding, the second for those of them that
  // core::tiles_see_all_keys; or NULL.
  const void *packed, *packed_sees_all_keys, *packed_by_warps;
  // __global__ void(device::MergeArgs), of a balanced schedule and of others; the last one of pieces of
  // packed queries.
  const void *merge_parts, *merge_splits, *merge_packed;
  SplitLaunch boxes, rows, dense_for_warps;
  int32_t threads, merge_threads;
  int32_t head_dim, block_n;
  int32_t box_cols, swizzle_bytes;
};

// The one of latent attention; defined in cuda/instantiations.
template <flash3_dtype kDtype>
SplitKernel mla_kernel();

// The kernel of one of core::kSplitConfigs; defined in cuda/instantiations.
template <flash3_dtype kDtype, int kConfigIndex>
SplitKernel split_kernel();

}  // namespace flash3::launch
