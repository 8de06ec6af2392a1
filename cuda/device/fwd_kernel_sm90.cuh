// The forward kernel: one persistent block per multiprocessor with one or two streams, each a producer warp, one to
// four consumer warpgroups that work on one tile, and mostly a warp that stores its result. The streams of a block
// share nothing but the multiprocessor: where a tile is short, one stream fills the gaps of the other.
#pragma once

#include <cstdint>

#include "device/cluster.cuh"
#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/producer_cache.cuh"
#include "device/producer_sm90.cuh"
#include "device/ptx.cuh"
#include "device/storer.cuh"
#include "device/tile_reader.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
__device__ __forceinline__ void consume(const FwdArgs &args, typename Traits::SharedStorage &smem, int warpgroup) {
  using Loop = Mainloop<Traits>;
  Loop mainloop(args, smem, warpgroup);
  const Epilogue<Traits> epilogue(args, warpgroup);
  TileReader<Traits> reader(smem);
  bool started = false;  // the scores of the tile's first block are in `s`
  float s[Loop::kScores];
  mainloop.begin_turns();
  while (started || reader.valid()) {
    const WorkTile &tile = reader.tile();
    const core::BlockRange range = reader.range();
    TileReader<Traits> next = reader;
    next.state.advance();
    if (!started && ptx::uniform(range.begin == range.end)) {
      epilogue.store_empty(tile);
      next.wait();
    } else {
      if (!started) mainloop.start(reader, s);
      OnlineSoftmax softmax(Traits::kScoreMod ? 1.f : args.scale_log2);
      uint32_t p[Loop::kScores / 2];
      float o[Loop::kOutputs];
      mainloop.run(reader, range, s, p, o, softmax);
      if constexpr (Traits::kOverlapsTiles) {
        started = mainloop.finish_and_start(p, o, s, next);
      } else {
        mainloop.finish(p, o);
      }
      RowResults results;
      if constexpr (Traits::kStoresLse) {
        results = epilogue.finish_rows(tile, softmax, smem.lse + 64 * warpgroup);
      } else {
        results = epilogue.finish_rows(tile, softmax);
      }
      mainloop.wait_output(o);
      if constexpr (Traits::kStores) {
        epilogue.put_down(tile, results, o, mainloop.output_place());
        ptx::fence_proxy_async_shared();
        ptx::mbarrier_arrive(&smem.barriers.staged[warpgroup]);
      } else {
        epilogue.store(tile, results, o, mainloop.output_place());
      }
      if constexpr (Traits::kOverlapsTiles) {
        mainloop.join(s);
      } else {
        next.wait();
      }
    }
    reader.advance();
  }
  mainloop.end_turns();
  // The copy engine still reads this block's shared memory.
  if constexpr (!Traits::kStores) ptx::tma_store_wait_read();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) fwd_kernel_sm90(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto *const smem = reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warpgroup = ptx::uniform(threadIdx.x / 128);
  const int warp = ptx::uniform(threadIdx.x / 32);
  if (warp == 4 && ptx::elect_one()) prefetch_tensormaps(args);
  Producer<Traits> producer(args, smem[warp % Traits::kStreams], warp);
  typename Traits::Job first;  // of a warp that is no producer: none
  if constexpr (Traits::kCache) {
    if (warp == 0) {
      init_barriers<Traits>(*smem, args.loading_warps, 32 * (2 * args.loading_warps - 1));
    }
  } else if (warp < Traits::kStreams) {
    first = producer.start();
  } else if constexpr (Traits::kPaired) {
    __syncwarp();
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  }
  static_assert(Traits::kStreams <= 2, "a warp is a producer, a scout, or stores");
  constexpr bool kMeetsInRoles = Producer<Traits>::kMeetsInRoles;
  if constexpr (!kMeetsInRoles) __syncthreads();
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if constexpr (Traits::kCache) {
      CacheProducer<Traits>(args, *smem, warp).run();
    } else {
      const bool scout = Traits::kScouts && warp >= Traits::kStreams && warp < 2 * Traits::kStreams;
      if (warp < Traits::kStreams || (kMeetsInRoles && !scout)) producer.run(first);
      if (scout) {
        if constexpr (kMeetsInRoles) ptx::meet(Traits::kThreads);
        TileScout<Traits>(args, smem[warp - Traits::kStreams], warp - Traits::kStreams).run();
      } else if (Traits::kStores && warp >= 4 - Traits::kStreams) {
        Storer<Traits>(args, smem[warp - (4 - Traits::kStreams)]).run();
      }
    }
  } else {
    if constexpr (kMeetsInRoles) ptx::meet(Traits::kThreads);
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    consume<Traits>(args, smem[(warpgroup - 1) / Traits::kConsumers], (warpgroup - 1) % Traits::kConsumers);
  }
  if constexpr (Traits::kPaired) {
    // The other block still uses this one's memory.
    __syncwarp();
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  }
}

}  // namespace flash3::device
