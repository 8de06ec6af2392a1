// How the merging kernel finds out what the split-KV kernel did.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"
#include "device/sequence_costs.cuh"

namespace flash3::device {

// Whether tiles are cut alike: what the blocks of the kernel before have found, too (PlainPartFinder). Where they are,
// there are no entries to wait for, each of which would take two ways to L2. Collective over the block.
template <int kThreads>
__device__ __forceinline__ void find_cuts(core::SplitSchedule &schedule) {
  constexpr int kWarps = kThreads / 32;
  __shared__ int32_t totals[kWarps], most[kWarps];
  SequenceCosts::of(schedule, static_cast<int32_t>(threadIdx.x), kThreads, schedule.batch).put_warp(totals, most);
  __syncthreads();
  int32_t total = 0, largest = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    total += totals[w];
    largest = max(largest, most[w]);
  }
  schedule.plain_parts(total * schedule.heads_of_line, largest);
}

}  // namespace flash3::device
