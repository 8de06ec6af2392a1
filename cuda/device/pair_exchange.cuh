// Merging the two pieces of a tile whose thread blocks are a cluster (core::SplitSchedule::merged_by_pairs): each of
// them sends what it has of half of the columns to the other one, and stores the other half. Through memory, and by
// the merging kernel, whose code is in no cache, the same takes 4 to 7 us.
//
// A part is a piece then, so that this happens once, and the buffer for the Q of a next piece is free for what comes.
#pragma once

#include <cstdint>

#include "device/cluster.cuh"
#include "device/ptx.cuh"

namespace flash3::device {

template <class Traits>
struct PairExchange {
  static constexpr int kColumns = Traits::kHeadDim / 2;  // of each block

  typename Traits::SharedStorage &smem;
  const uint32_t rank = ptx::cluster_rank();

  // A row's largest score so far and the sum of its exponentials relative to it, and its output, in the same units.
  struct Weights {
    float top, total;
    float own, other;  // of the two sums
  };

  // The own place of what the other block is to send, by one thread.
  __device__ __forceinline__ void expect(int32_t rows) const {
    constexpr uint32_t kBytesOfRow = sizeof(float2) + kColumns * sizeof(float);
    ptx::mbarrier_arrive_expect_tx(&smem.barriers.pair, rows * kBytesOfRow);
  }
  __device__ __forceinline__ void send_row(int row, float top, float sum) const {
    ptx::st_async_8(of_other(&smem.pair_rows[row]), top, sum, of_other(&smem.barriers.pair));
  }
  __device__ __forceinline__ void send(float *place, const float4 &x) const {
    ptx::st_async_16(of_other(place), x.x, x.y, x.z, x.w, of_other(&smem.barriers.pair));
  }
  __device__ __forceinline__ void wait() const { ptx::mbarrier_wait(&smem.barriers.pair, 0); }

  // Of a row whose own part has been sent. NaN stays NaN, and a piece that has seen no key counts nothing.
  __device__ __forceinline__ Weights weights(int row, float top, float sum) const {
    const float2 other = smem.pair_rows[row];
    Weights w;
    w.top = fmaxf(top, other.x);
    w.own = weight(top, sum, w.top);
    w.other = weight(other.x, other.y, w.top);
    w.total = fmaf(sum, w.own, other.y * w.other);
    return w;
  }

 private:
  static __device__ __forceinline__ float weight(float top, float sum, float of_both) {
    return top == -INFINITY && sum == 0.f ? 0.f : ptx::ex2(top - of_both);
  }

  __device__ __forceinline__ uint32_t of_other(const void *own) const {
    return ptx::mapa(ptx::shared_address(own), rank ^ 1);
  }
};

}  // namespace flash3::device
