// Finding the part of a thread block on the line of costs, from the lengths alone.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"
#include "device/split_args.h"

namespace flash3::device {

// What a thread block has to do for one part; in shared memory.
struct SplitPart {
  int32_t begin, end;    // places on the line; none: nothing
  core::SplitTile tile;  // that holds the first one
};

// Collective over the thread block: every thread adds up the costs of some sequences, and the one whose sequences hold
// the part's first place finds out the rest, for all.
template <class Traits>
struct PartFinder {
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kWarps = kThreads / 32;

  const core::SplitSchedule &schedule;
  const Partials &partials;
  typename Traits::SharedStorage &smem;

  // Leaves the part in smem.part.
  __device__ __forceinline__ void find(int32_t part) const {
    const int32_t share = core::ceil_div(schedule.batch, kThreads);
    const int32_t first = static_cast<int32_t>(threadIdx.x) * share;
    const int32_t behind = min(first + share, schedule.batch);
    int32_t own = 0;
#pragma unroll 1
    for (int32_t b = first; b < behind; ++b) own += schedule.sequence_cost(b);
    int32_t total;
    int32_t at = scan(own, &total);
    const core::SplitParts parts = schedule.parts(total);
    const int32_t begin = parts.begin(schedule.in_line(part));
    const int32_t end = parts.begin(schedule.in_line(part) + 1);
    if (begin >= end) {
      if (threadIdx.x == 0) {
        smem.part.begin = smem.part.end = 0;
        if (schedule.balanced()) partials.entries[part].rows = 0;
      }
    } else if (at <= begin && begin < at + own) {
      int32_t b = first;
#pragma unroll 1
      for (int32_t cost; at + (cost = schedule.sequence_cost(b)) <= begin; ++b) at += cost;
      const core::SplitCursor cursor = {schedule, begin, end,
                                        core::SplitTile::find(schedule, schedule.line_of(part), begin, b, at)};
      smem.part = {begin, end, cursor.tile};
      if (schedule.balanced()) partials.entries[part] = schedule.entry_of_part(cursor.piece(), parts, part);
    }
    if (part == 0 && threadIdx.x == 0 && schedule.num_splits > 1)
      *partials.num_entries = total / schedule.num_splits * schedule.num_lines;
    __syncthreads();
  }

 private:
  // The sum of x over the threads before this one, and over all.
  __device__ __forceinline__ int32_t scan(int32_t x, int32_t *total) const {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    int32_t inclusive = x;
#pragma unroll 1
    for (int offset = 1; offset < 32; offset *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    if (lane == 31) smem.warp_costs[warp] = inclusive;
    __syncthreads();
    int32_t before = 0;
    *total = 0;
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += smem.warp_costs[w];
      *total += smem.warp_costs[w];
    }
    return before + inclusive - x;
  }
};

}  // namespace flash3::device
