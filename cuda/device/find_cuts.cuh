// How the merging kernel finds out what the split-KV kernel did.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"

namespace flash3::device {

// Whether tiles are cut alike: what the blocks of the kernel before have found, too (PlainPartFinder). Where they are,
// there are no entries to wait for, each of which would take two ways to L2. Collective over the block.
template <int kThreads>
__device__ __forceinline__ void find_cuts(core::SplitSchedule &schedule) {
  constexpr int kWarps = kThreads / 32;
  __shared__ int32_t totals[kWarps], most[kWarps];
  int32_t total = 0, largest = core::SplitSchedule::kTileCost;
#pragma unroll 1
  for (auto b = static_cast<int32_t>(threadIdx.x); b < schedule.batch; b += kThreads) {
    const int32_t cost = schedule.head_cost(schedule.lengths(b));
    total += cost;
    largest = max(largest, cost);
  }
  total = static_cast<int32_t>(__reduce_add_sync(0xffffffffu, static_cast<uint32_t>(total)));
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (threadIdx.x % 32 == 0) {
    totals[threadIdx.x / 32] = total;
    most[threadIdx.x / 32] = largest;
  }
  __syncthreads();
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    total += totals[w];
    largest = max(largest, most[w]);
  }
  schedule.plain_parts(total * schedule.heads_of_line, largest);
}

}  // namespace flash3::device
