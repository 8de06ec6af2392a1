// Merging the pieces of a tile whose thread blocks are a cluster (core::SplitSchedule::merged_by_clusters): each of
// them is responsible for some of the columns, as many as the others, sends what it has of the rest to those that are,
// and stores the whole of its own. Through memory, and by the merging kernel, whose code is in no cache, the same takes
// 4 to 7 us.
//
// A part is a piece then, so that this happens once, and what is left free of the buffers for Q is there for what
// comes.
#pragma once

#include <cstdint>

#include "core/split_config.h"
#include "device/cluster.cuh"
#include "device/ptx.cuh"

namespace flash3::device {

// kBlocks: of the cluster, a power of two.
template <class Traits, int kBlocks>
struct ClusterExchange {
  static constexpr int kOthers = kBlocks - 1;
  static constexpr int kColumns = Traits::kHeadDim / kBlocks;  // of each block
  // Rows for which there is room, of each other block.
  static constexpr int kRows = Traits::kByWarps ? core::kWarpRows : kBlocks > 2 ? core::kFewRows : Traits::kBlockM;
  static_assert(kOthers * kRows <= Traits::kExchangeRows, "there is room");

  typename Traits::SharedStorage &smem;
  const uint32_t rank = ptx::cluster_rank();

  // Of another block, by its number as counted from this one.
  __device__ __forceinline__ uint32_t rank_of(int other) const {
    return (rank + 1 + static_cast<uint32_t>(other)) % kBlocks;
  }
  // The number of this one, as counted from another one.
  static __device__ __forceinline__ int number_from(int other) { return kOthers - 1 - other; }

  // What the other blocks are to send, by one thread.
  __device__ __forceinline__ void expect(int32_t rows) const {
    constexpr uint32_t kBytesOfRow = sizeof(float2) + kColumns * sizeof(float);
    ptx::mbarrier_arrive_expect_tx(&smem.barriers.exchange, kOthers * rows * kBytesOfRow);
  }
  // A row's largest score so far and the sum of its exponentials relative to it.
  __device__ __forceinline__ void send_row(int to, int row, float top, float sum) const {
    ptx::st_async_8(address(to, &smem.exchange_rows[number_from(to) * kRows + row]), top, sum,
                    address(to, &smem.barriers.exchange));
  }
  // Of its output, in the same units. place: where it comes to lie, in this block.
  __device__ __forceinline__ void send(int to, const float *place, const float4 &x) const {
    ptx::st_async_16(address(to, place), x.x, x.y, x.z, x.w, address(to, &smem.barriers.exchange));
  }
  __device__ __forceinline__ void wait() const { ptx::mbarrier_wait(&smem.barriers.exchange, 0); }

  // What another block has sent of a row.
  __device__ __forceinline__ float2 row_of(int other, int row) const { return smem.exchange_rows[other * kRows + row]; }

  // The largest score of a row in all blocks.
  __device__ __forceinline__ float top_of_all(int row, float own) const {
    float top = own;
#pragma unroll
    for (int i = 0; i < kOthers; ++i) top = fmaxf(top, row_of(i, row).x);
    return top;
  }

  // The factor of a block's sums. NaN stays NaN, and a piece that has seen no key counts nothing.
  static __device__ __forceinline__ float weight(float top, float sum, float of_all) {
    return top == -INFINITY && sum == 0.f ? 0.f : ptx::ex2(top - of_all);
  }

 private:
  __device__ __forceinline__ uint32_t address(int other, const void *own) const {
    return ptx::mapa(ptx::shared_address(own), rank_of(other));
  }
};

}  // namespace flash3::device
