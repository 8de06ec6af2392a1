// Finding the part of a thread block on the line of costs, from the lengths alone.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"

namespace flash3::device {

struct PartPlace {
  core::SplitParts parts;
  int64_t begin, end;
  int32_t sequence;  // that holds `begin`
  int64_t sequence_begin;
};

// Collective over the thread block: every thread adds up the costs of some sequences.
template <class Traits>
struct PartFinder {
  static constexpr int kThreads = Traits::kThreads;

  const core::SplitSchedule &schedule;
  typename Traits::SharedStorage &smem;

  __device__ __forceinline__ PartPlace find(int64_t part) const {
    const int thread = threadIdx.x;
    const int64_t own = cost(thread);
    int64_t sum = own;
    for (int64_t b = thread + kThreads; b < schedule.batch; b += kThreads) sum += cost(b);
    int64_t total;
    scan(sum, &total);
    PartPlace place;
    place.parts = {total, schedule.parts(total)};
    place.begin = place.parts.begin(part);
    place.end = place.parts.begin(part + 1);
    if (place.begin >= place.end) return place;
    int64_t before = 0;
    for (int64_t base = 0; before <= place.begin; base += kThreads) {
      const int64_t of_sequence = base == 0 ? own : cost(base + thread);
      int64_t of_round;
      const int64_t at = before + scan(of_sequence, &of_round);
      if (at <= place.begin && place.begin < at + of_sequence) {
        smem.sequence = static_cast<int32_t>(base + thread);
        smem.sequence_begin = at;
      }
      before += of_round;
    }
    __syncthreads();
    place.sequence = smem.sequence;
    place.sequence_begin = smem.sequence_begin;
    return place;
  }

 private:
  __device__ __forceinline__ int64_t cost(int64_t b) const {
    return b < schedule.batch ? schedule.sequence_cost(static_cast<int32_t>(b)) : 0;
  }

  // The sum of x over the threads before this one, and over all.
  __device__ __forceinline__ int64_t scan(int64_t x, int64_t *total) const {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    int64_t inclusive = x;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int64_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    if (lane == 31) smem.warp_costs[warp] = inclusive;
    __syncthreads();
    int64_t before = 0;
    *total = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) before += smem.warp_costs[w];
      *total += smem.warp_costs[w];
    }
    __syncthreads();
    return before + inclusive - x;
  }
};

}  // namespace flash3::device
