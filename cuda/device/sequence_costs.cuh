// What the sequences of a plain decoding call cost: the blocks of the split-KV kernel find their parts by that, and
// those of the merging kernel whether tiles are cut alike, so both have to come to the same.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"

namespace flash3::device {

struct SequenceCosts {
  int32_t total = 0;  // of one KV head each
  int32_t largest = core::SplitSchedule::kTileCost;
  bool surplus = false;  // some have more queries than their tiles hold

  // Of the sequences first, first + step, .., before `end`.
  static __device__ __forceinline__ SequenceCosts of(const core::SplitSchedule &schedule, int32_t first, int32_t step,
                                                     int32_t end) {
    SequenceCosts costs;
#pragma unroll 1
    for (int32_t b = first; b < end; b += step) {
      const core::SplitLengths all = schedule.lengths_of_sequence(b);
      const int32_t cost = schedule.head_cost(schedule.of_tiles(all));
      costs.total += cost;
      costs.largest = max(costs.largest, cost);
      if (schedule.packs_few) costs.surplus |= schedule.has_more(all) && !schedule.leaves_longer;
    }
    return costs;
  }

  // Of a warp, to its places in shared memory. Collective over it.
  __device__ __forceinline__ void put_warp(int32_t *totals, int32_t *most) const {
    const auto sum = static_cast<int32_t>(__reduce_add_sync(0xffffffffu, static_cast<uint32_t>(total)));
    const int32_t top = __reduce_max_sync(0xffffffffu, largest);
    if (threadIdx.x % 32 == 0) {
      totals[threadIdx.x / 32] = sum;
      most[threadIdx.x / 32] = top;
    }
  }
};

}  // namespace flash3::device
