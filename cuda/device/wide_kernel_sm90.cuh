// The forward kernel for wide heads: a cluster of two thread blocks for every tile, each with half of the columns, a
// producer warp and two consumer warpgroups of 64 rows. See wide_mainloop_sm90.cuh for how the two work together.
//
// Both blocks find out by themselves what the tile is, and so agree on whether there is one and on its key blocks.
#pragma once

#include <cstdint>

#include "device/cluster.cuh"
#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_loads.cuh"
#include "device/wide_mainloop_sm90.cuh"
#include "device/wide_traits.cuh"

namespace flash3::device {

// By one whole warp.
template <class Traits>
__device__ __forceinline__ void init_wide_barriers(typename Traits::SharedStorage &smem) {
  const int lane = threadIdx.x % 32;
  const bool of_consumers = lane >= Traits::kFirstEmpty && lane < Traits::kScoresFull;
  const uint32_t arrivals = of_consumers ? 4 * Traits::kConsumers : lane >= Traits::kScoresEmpty ? 4 : 1;
  if (lane < Traits::kBarriers) ptx::mbarrier_init(&smem.barriers.q_full[0] + lane, arrivals);
  ptx::fence_mbarrier_init();
}

// By one whole warp.
template <class Traits>
__device__ __forceinline__ void find_wide_tile(const FwdArgs &args, typename Traits::SharedStorage &smem) {
  const TileLoads<Traits> loads{args, smem};
  if (loads.packed_q()) ptx::wait_for_previous_kernel();  // first_m_block is its work
  const int64_t t = blockIdx.x / Traits::kCtas;
  WorkTile tile = {};
  typename Traits::Job job;
  if (t < loads.num_tiles()) loads.describe(loads.decode(static_cast<int32_t>(t)), &tile, &job);
  if (threadIdx.x % 32 == 0) {
    smem.tile = tile;
    smem.job = job;
  }
}

// One warp: Q, and K one block ahead of V, as the consumers take them.
template <class Traits>
__device__ __forceinline__ void produce_wide(const FwdArgs &args, typename Traits::SharedStorage &smem) {
  using State = RingState<Traits::kStages>;
  const TileLoads<Traits> loads{args, smem};
  const typename Traits::Job job = smem.job;
  State k_state = State::producer();
  State v_state = State::producer();
  const auto load_k = [&](int32_t n) {
    loads.load(loads.load_of_k(job, n, k_state));
    k_state.advance();
  };
  const auto load_v = [&](int32_t n) {
    loads.load_values(loads.load_of_v(job, n, v_state));
    v_state.advance();
  };
  load_k(job.range.end - 1);
  loads.load(loads.load_of_q(job, RingState<1>::producer()));
#pragma unroll 1
  for (int32_t n = job.range.end - 2; n >= job.range.begin; --n) {
    load_k(n);
    load_v(n + 1);
  }
  load_v(job.range.begin);
}

template <class Traits>
__device__ __forceinline__ void consume_wide(const FwdArgs &args, typename Traits::SharedStorage &smem, int warpgroup) {
  using Loop = WideMainloop<Traits>;
  const WorkTile &tile = smem.tile;
  const core::BlockRange range = {ptx::uniform(tile.range.begin), ptx::uniform(tile.range.end),
                                  ptx::uniform(tile.range.full_begin), ptx::uniform(tile.range.full_end)};
  const Epilogue<Traits> epilogue(args, warpgroup);
  if (range.begin == range.end) {
    if (Traits::first_column() == 0) epilogue.store_empty(tile);  // all columns
    return;
  }
  Loop mainloop(args, smem, warpgroup);
  OnlineSoftmax softmax(Traits::kScoreMod ? 1.f : args.scale_log2);
  float o[Loop::kOutputs];
  mainloop.run(tile, range, o, softmax);
  const RowResults results = epilogue.finish_rows(tile, softmax);
  wgmma_wait_group<0>();
  fence_accumulators(o);
  epilogue.store(tile, results, o, mainloop.output_place());
  mainloop.end_turns();
  ptx::tma_store_wait_read();  // the copy engine still reads this block's shared memory
}

template <class Traits>
__global__ void __cluster_dims__(Traits::kCtas, 1, 1) __launch_bounds__(Traits::kThreads, 1)
    wide_fwd_kernel_sm90(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warpgroup = ptx::uniform(threadIdx.x / 128);
  const int warp = ptx::uniform(threadIdx.x / 32);
  if (warp == 1) init_wide_barriers<Traits>(smem);
  __syncwarp();
  ptx::cluster_arrive_relaxed();
  if (warp == 0) find_wide_tile<Traits>(args, smem);
  if (warp == 4 && ptx::elect_one()) prefetch_tensormaps(args);
  __syncthreads();
  ptx::cluster_wait();  // from here on the other block may use this one's barriers
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp == 0 && ptx::uniform(smem.tile.range.count() > 0)) produce_wide<Traits>(args, smem);
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    if (ptx::uniform(smem.tile.valid != 0)) consume_wide<Traits>(args, smem, warpgroup - 1);
  }
  // Either block may end before the other one: what is sent to a block is waited for there.
}

}  // namespace flash3::device
