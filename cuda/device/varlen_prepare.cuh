// Run before the forward kernel, which starts while they run and waits where it needs what they write: a zero tile
// counter, and for a packed call of many sequences (FwdKernel::most_added_up) where the tiles of each begin in the
// order of tiles.
#pragma once

#include <cstdint>

#include "core/seqlen.h"
#include "core/tile_scheduler.h"
#include "device/ptx.cuh"
#include "device/scan.cuh"

namespace flash3::device {

struct PrepareArgs {
  core::SeqSide q_side;
  int32_t batch;
  int32_t block_m;
  int32_t most_m_blocks;   // bound for the sum, so that tile numbers of a wrong cu_seqlens stay in 32 bits
  int32_t *first_m_block;  // (batch + 1)
  int32_t *tile_counter;
};

__global__ void __launch_bounds__(32) dense_prepare(int32_t *tile_counter) {
  ptx::launch_dependents();
  if (threadIdx.x == 0) *tile_counter = 0;
}

inline constexpr int kPrepareThreads = 1024;

// One block. Each round scans the m_blocks of 1024 sequences and carries the sum on.
__global__ void __launch_bounds__(kPrepareThreads) varlen_prepare(const PrepareArgs args) {
  ptx::launch_dependents();
  __shared__ int64_t warp_sums[kPrepareThreads / 32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int64_t carry = 0;
  if (threadIdx.x == 0) *args.tile_counter = 0;
  for (int64_t base = 0; base <= args.batch; base += kPrepareThreads) {
    const int64_t b = base + threadIdx.x;
    const int64_t own =
        b < args.batch ? core::ceil_div(args.q_side.span(static_cast<int32_t>(b)).len, args.block_m) : 0;
    const int64_t inclusive = inclusive_scan(own);
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    int64_t before = carry;
    for (int w = 0; w < kPrepareThreads / 32; ++w) {
      if (w < warp) before += warp_sums[w];
      carry += warp_sums[w];
    }
    __syncthreads();
    const int64_t exclusive = before + inclusive - own;
    if (b <= args.batch) {
      args.first_m_block[b] = static_cast<int32_t>(exclusive < args.most_m_blocks ? exclusive : args.most_m_blocks);
    }
  }
}

}  // namespace flash3::device
