// What the two consumer warpgroups of the kernel of latent attention tell each other: the probabilities of a block and
// what belongs to its rows, and at the end of a piece their sums.
#pragma once

#include <cstdint>

#include "device/mla_traits.cuh"
#include "device/ptx.cuh"
#include "device/softmax.cuh"

namespace flash3::device {

template <class Traits, int kGroup>
struct MlaExchange {
  static constexpr int kPeer = 1 - kGroup;

  typename Traits::SharedStorage &smem;
  const int32_t warp_row;    // first row of the warp, among those of the thread block
  uint32_t peer_parity = 0;  // of what the other warpgroup publishes
  uint32_t sums_at = 0;      // those of the piece before may still be read

  // The probabilities go to where the last chunk of K was, and what belongs to rows beside them.
  __device__ __forceinline__ void put_down(const OnlineSoftmax &softmax, const float (&correction)[2],
                                           const uint32_t (&p)[Traits::kBlockN / 4]) const {
    const int lane = threadIdx.x % 32;
    ptx::bar_sync(kMlaWithin + kGroup, 128);  // no warp's scores are on their way any more
    if (lane % 4 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        smem.rows[kGroup][warp_row + lane / 4 + 8 * r] = {softmax.reference[r], correction[r]};
      }
    }
    // Matrices (row half, column half) = (0,0) (1,0) (0,1) (1,1) of 8x8; lane l gives the address of row l % 16 and
    // column half l / 16.
    char *const to = reinterpret_cast<char *>(smem.k[kGroup][Traits::kLastChunk]);
#pragma unroll
    for (int j = 0; j < Traits::kBlockN / 16; ++j) {
      ptx::stmatrix_x4(to + Traits::offset(warp_row + lane % 16, 16 * j + lane / 16 * 8), p[4 * j], p[4 * j + 1],
                       p[4 * j + 2], p[4 * j + 3]);
    }
    ptx::fence_proxy_async_shared();
  }

  // Of what was put down, once per block.
  __device__ __forceinline__ void publish() const { ptx::mbarrier_arrive(&smem.barriers.published[kGroup]); }

  // Waits for the other warpgroup's block: its probabilities are there, `softmax` goes on from its references, and
  // `correction` is for everything accumulated before it.
  __device__ __forceinline__ void receive(OnlineSoftmax &softmax, float (&correction)[2]) {
    ptx::mbarrier_wait(&smem.barriers.published[kPeer], peer_parity);
    peer_parity ^= 1;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const typename Traits::RowState row = smem.rows[kPeer][warp_row + lane / 4 + 8 * r];
      correction[r] = row.correction;
      softmax.reference[r] = row.reference;
      softmax.row_sum[r] *= row.correction;
    }
  }

  // The sums of both warpgroups' blocks, which have the same reference now; the first lane of a quad holds them.
  __device__ __forceinline__ void add_sums(OnlineSoftmax &softmax) {
    const int lane = threadIdx.x % 32;
    float own[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      own[r] = quad_sum(softmax.row_sum[r]);
      if (lane % 4 == 0) smem.sums[sums_at][kGroup][warp_row + lane / 4 + 8 * r] = own[r];
    }
    ptx::mbarrier_arrive(&smem.barriers.summed[kGroup]);
    ptx::mbarrier_wait(&smem.barriers.summed[kPeer], sums_at);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float other = smem.sums[sums_at][kPeer][warp_row + lane / 4 + 8 * r];
      // The same order in both warpgroups.
      softmax.row_sum[r] = lane % 4 != 0 ? 0.f : kGroup == 0 ? own[r] + other : other + own[r];
    }
    sums_at ^= 1;
  }
};

}  // namespace flash3::device
