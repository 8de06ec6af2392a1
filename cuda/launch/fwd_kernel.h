// The forward kernels as the host code sees them.
#pragma once

#include <cstdint>

#include "flash3.h"

namespace flash3::launch {

struct FwdKernel {
  const void *function;  // __global__ void(device::FwdArgs)
  uint32_t shared_bytes;
  int32_t threads;
  bool is_short;          // the kernel for short sequences, which needs no tile counter and nothing prepared
  int32_t most_added_up;  // packed sequences whose lengths it adds up itself, with nothing prepared
  bool is_resident;       // the kernel for few keys
  int32_t streams, blocks_per_sm;
  int32_t cluster_blocks;  // thread blocks that work on a tile together; more than one: each cluster has one tile
  bool paired;             // clusters of two, whose thread blocks have a tile each and share what they load
  int32_t head_dim, head_dim_v, block_m, block_n;
  int32_t box_cols, swizzle_bytes;
};

// The kernel of one of core::kTileConfigs, with or without softcap and ALiBi, with or without lengths from device
// memory; defined in cuda/instantiations.
template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod, bool kVarlen>
FwdKernel fwd_kernel();

// The one for scores that are modified by a softcap alone, of a config that has it.
template <flash3_dtype kDtype, int kConfigIndex, bool kVarlen>
FwdKernel capped_kernel();

// The one that computes tiles in pairs, of a config that has it.
template <flash3_dtype kDtype, int kConfigIndex>
FwdKernel paired_kernel();

// The same of a config whose K and V stay in shared memory.
template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod, bool kVarlen>
FwdKernel resident_kernel();

// The one for caches, of one of core::kCacheConfigs, with or without softcap and ALiBi.
template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod>
FwdKernel cache_kernel();

// The same for tiles that are computed in pieces of their keys, of scores that are not modified.
template <flash3_dtype kDtype, int kConfigIndex>
FwdKernel pieces_kernel();

}  // namespace flash3::launch
