// The kernel of latent attention (MLA): few queries of many heads to cached keys whose first columns are their values,
// dense, packed or paged. It shares out its work as the split-KV kernel does, and what is cut is merged likewise. A
// tile of more than 64 rows is computed by two thread blocks, 64 rows each, that have neighbouring numbers: what one of
// them loads the other one finds in L2.
#pragma once

#include <cstdint>

#include "device/mla_consumer.cuh"
#include "device/mla_producer.cuh"
#include "device/mla_queries.cuh"
#include "device/mla_traits.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_parts.cuh"
#include "device/split_traits.cuh"

namespace flash3::device {

// By one warp.
template <class Traits>
__device__ __forceinline__ void init_mla(typename Traits::SharedStorage &smem) {
  const int lane = threadIdx.x % 32;
  constexpr int kFull = Traits::kGroups * Traits::kChunks;
  constexpr int kEmpty = Traits::kGroups * Traits::kSides;
  static_assert(kFull <= 32 && kEmpty <= 32, "a barrier a lane");
  if (lane < kFull) ptx::mbarrier_init(&smem.barriers.full[0][0] + lane, 1);
  if (lane < kEmpty) ptx::mbarrier_init(&smem.barriers.empty[0][0] + lane, 4);
  if (lane < Traits::kGroups) {
    ptx::mbarrier_init(&smem.barriers.published[lane], 128);
    ptx::mbarrier_init(&smem.barriers.summed[lane], 128);
  }
  if (lane == 0) {
    ptx::mbarrier_init(&smem.barriers.q_full, Traits::kQueryThreads + 1);
    ptx::mbarrier_init(&smem.barriers.q_empty, Traits::kConsumerThreads);
  }
  ptx::fence_mbarrier_init();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) mla_kernel_sm90(const __grid_constant__ SplitArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warp = ptx::uniform(threadIdx.x / 32);
  constexpr int kProducerWarp = Traits::kConsumerThreads / 32;
  core::SplitSchedule schedule = known_schedule<Traits>(args.schedule);
  const int blocks = schedule.block_m / Traits::kBlockM;  // of a tile
  const int rank = static_cast<int>(blockIdx.x) % blocks;
  const PartFinder<Traits> finder{schedule, args.partials, smem};
  finder.prefetch();
  if (warp == kProducerWarp) {
    init_mla<Traits>(smem);
    if (ptx::elect_one() && args.key_loads == KeyLoads::kTma) ptx::prefetch_tensormap(&args.k_map);
  }
  ptx::launch_dependents();  // the merging kernel waits for this one's results
  if (args.follows_append) ptx::wait_for_previous_kernel();

  const bool balanced = schedule.balanced();
  const core::SplitPartId part = {static_cast<int32_t>(blockIdx.x) / blocks, static_cast<int32_t>(blockIdx.y)};
  const core::SplitParts parts = finder.find(part);
  const bool whole = balanced && !schedule.balanced();
  const core::SplitCursor cursor = {schedule, smem.part.begin, smem.part.end, smem.part.tile};
  if (warp >= kProducerWarp) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp == kProducerWarp) {
      MlaProducer<Traits>(args, schedule, smem, rank).run(cursor);
    } else {
      const int thread = threadIdx.x - (Traits::kThreads - Traits::kQueryThreads);
      MlaQueries<Traits>{args, schedule, smem, rank, thread}.run(cursor);
    }
    if (threadIdx.x == Traits::kThreads - 1 && rank == 0) {
      finder.note(part, parts);
      // The merging kernel was launched for a balanced schedule.
      if (whole) args.partials.entries[part.index * schedule.num_lines + part.line].rows = 0;
    }
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    if (warp < kProducerWarp / 2) {
      MlaConsumer<Traits, 0>(args, schedule, smem, rank).run(part);
    } else {
      MlaConsumer<Traits, 1>(args, schedule, smem, rank).run(part);
    }
  }
}

}  // namespace flash3::device
