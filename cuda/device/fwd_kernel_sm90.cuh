// The forward kernel: one persistent block per multiprocessor, a producer warpgroup and two or three consumer
// warpgroups.
#pragma once

#include <cstdint>

#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/producer_sm90.cuh"
#include "device/ptx.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
__device__ __forceinline__ void init_barriers(typename Traits::SharedStorage &smem) {
  constexpr int kConsumerWarps = Traits::kConsumers * 4;
  ptx::mbarrier_init(&smem.q_full, 1);
  // A warp each, or, where the epilogue gives Q back, a warpgroup each.
  ptx::mbarrier_init(&smem.q_empty, Traits::kOutAliasesQ ? Traits::kConsumers : kConsumerWarps);
  for (int i = 0; i < Traits::kStages; ++i) {
    ptx::mbarrier_init(&smem.k_full[i], 1);
    ptx::mbarrier_init(&smem.k_empty[i], kConsumerWarps);
    ptx::mbarrier_init(&smem.v_full[i], 1);
    ptx::mbarrier_init(&smem.v_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < 2; ++i) {
    ptx::mbarrier_init(&smem.tile_full[i], 1);
    ptx::mbarrier_init(&smem.tile_empty[i], kConsumerWarps);
  }
  ptx::fence_mbarrier_init();
}

template <class Traits>
__device__ __forceinline__ void consume(const FwdArgs &args, typename Traits::SharedStorage &smem, int warpgroup) {
  Mainloop<Traits> mainloop(args, smem, warpgroup);
  const Epilogue<Traits> epilogue(args, smem, warpgroup);
  RingState<2> tile_state{0};
  mainloop.begin_turns();
  for (;;) {
    ptx::mbarrier_wait(&smem.tile_full[tile_state.index], tile_state.parity);
    const WorkTile &tile = smem.tile[tile_state.index];
    if (!ptx::uniform(tile.valid != 0)) break;
    const core::BlockRange range = {ptx::uniform(tile.range.begin), ptx::uniform(tile.range.end),
                                    ptx::uniform(tile.range.full_begin), ptx::uniform(tile.range.full_end)};
    if (ptx::uniform(range.begin == range.end)) {
      epilogue.store_empty(tile);
    } else {
      OnlineSoftmax softmax(args.score_mod ? 1.f : args.scale_log2);
      float o[Mainloop<Traits>::kOutputs];
      mainloop.run(tile, range, o, softmax);
      epilogue.store(tile, softmax, o);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&smem.tile_empty[tile_state.index]);
    tile_state.advance();
  }
  mainloop.end_turns();
  // The copy engine still reads this block's shared memory.
  ptx::tma_store_wait_read();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) fwd_kernel_sm90(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warpgroup = ptx::uniform(threadIdx.x / 128);
  if (threadIdx.x == 0) {
    init_barriers<Traits>(smem);
    ptx::prefetch_tensormap(&args.q_map);
    ptx::prefetch_tensormap(&args.k_map);
    ptx::prefetch_tensormap(&args.v_map);
    ptx::prefetch_tensormap(&args.out_map);
  }
  __syncthreads();
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (threadIdx.x < 32) Producer<Traits>(args, smem).run();
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    consume<Traits>(args, smem, warpgroup - 1);
  }
}

}  // namespace flash3::device
