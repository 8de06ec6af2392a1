// Finding the part of a thread block on the line of costs, from the lengths alone.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"
#include "device/ptx.cuh"
#include "device/split_args.h"

namespace flash3::device {

// What a thread block has to do; in shared memory.
struct SplitPart {
  int32_t begin, end;    // places on the line; none: nothing
  core::SplitTile tile;  // that holds the first one

  __device__ __forceinline__ core::SplitCursor cursor(const core::SplitSchedule &schedule) const {
    return {schedule, begin, end, tile};
  }
};

// Every thread adds up the costs of some sequences, and the one whose sequences hold the part's first place finds out
// the rest, for all.
template <class Traits>
struct PartFinder {
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kWarps = kThreads / 32;

  const core::SplitSchedule &schedule;
  const core::SplitPartId part;
  const Partials &partials;
  typename Traits::SharedStorage &smem;

  int32_t first, behind;  // this thread's sequences
  int32_t at, own;        // where they begin on the line, and their cost
  core::SplitParts parts;

  __device__ __forceinline__ PartFinder(const core::SplitSchedule &s, const core::SplitPartId &id, const Partials &p,
                                        typename Traits::SharedStorage &storage)
      : schedule(s), part(id), partials(p), smem(storage) {}

  // Collective over the thread block. The last threads have the first sequences: they belong to the producers, which
  // the consumers do not wait for.
  __device__ __forceinline__ void add_up() {
    const int32_t share = core::ceil_div(schedule.batch, kThreads);
    first = (kThreads - 1 - static_cast<int32_t>(threadIdx.x)) * share;
    behind = min(first + share, schedule.batch);
    own = 0;
#pragma unroll 1
    for (int32_t b = first; b < behind; ++b) own += schedule.sequence_cost(b);
    int32_t total;
    at = scan(own, &total);
    parts = schedule.parts(total);
  }

  // Leaves the part in smem.part, once all threads have called this: smem.barriers.found says so.
  __device__ __forceinline__ void publish() const {
    const int32_t begin = parts.begin(part.index);
    const int32_t end = parts.begin(part.index + 1);
    if (begin >= end) {
      if (threadIdx.x == kThreads - 1) smem.part.begin = smem.part.end = 0;
    } else if (at <= begin && begin < at + own) {
      int32_t b = first;
      int32_t before = at;
#pragma unroll 1
      for (; b < behind - 1; ++b) {
        const int32_t cost = schedule.sequence_cost(b);
        if (begin < before + cost) break;
        before += cost;
      }
      smem.part = {begin, end, core::SplitTile::find(schedule, part.line, begin, b, before)};
    }
    ptx::mbarrier_arrive(&smem.barriers.found);
  }

  __device__ __forceinline__ void wait() const { ptx::mbarrier_wait(&smem.barriers.found, 0); }

  // By a thread that nobody waits for.
  __device__ __forceinline__ void note() const {
    if (part.line == 0 && part.index == 0 && schedule.num_splits > 1) {
      *partials.num_entries = parts.total / schedule.num_splits * schedule.num_lines;
    }
    if (!schedule.balanced()) return;
    core::SplitEntry &entry = partials.entries[part.index * schedule.num_lines + part.line];
    const core::SplitCursor cursor = smem.part.cursor(schedule);
    if (cursor.done()) {
      entry.rows = 0;
    } else {
      entry = schedule.entry_of_part(cursor.piece(), parts, part);
    }
  }

 private:
  // The sum of x over the threads behind this one, and over all.
  __device__ __forceinline__ int32_t scan(int32_t x, int32_t *total) const {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    int32_t inclusive = x;
#pragma unroll 1
    for (int offset = 1; offset < 32; offset *= 2) {
      const int32_t other = __shfl_down_sync(0xffffffffu, inclusive, offset);
      if (lane + offset < 32) inclusive += other;
    }
    if (lane == 0) smem.warp_costs[warp] = inclusive;
    __syncthreads();
    int32_t before = 0;
    *total = 0;
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) {
      if (w > warp) before += smem.warp_costs[w];
      *total += smem.warp_costs[w];
    }
    return before + inclusive - x;
  }
};

}  // namespace flash3::device
