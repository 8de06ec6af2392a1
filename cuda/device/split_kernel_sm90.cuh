// The split-KV kernel: attention of few queries to many keys, dense, packed or paged. Every thread block computes one
// part of the call (core/split_schedule.h); tiles that are cut between parts are merged by the kernel behind
// (merge_kernel.cuh).
#pragma once

#include <cstdint>
#include <type_traits>

#include "device/cluster.cuh"
#include "device/first_blocks.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_consumer.cuh"
#include "device/split_parts.cuh"
#include "device/split_producer.cuh"
#include "device/split_ring.cuh"
#include "device/split_side.cuh"
#include "device/split_traits.cuh"
#include "device/split_warp_consumer.cuh"

namespace flash3::device {

// By one warp. Asynchronous copies arrive by lane, the copy engine once.
template <class Traits>
__device__ __forceinline__ void init_split(const SplitArgs &args, typename Traits::SharedStorage &smem) {
  const int lane = threadIdx.x % 32;
  constexpr int kBarriers = 2 * Traits::kStages;
  if (lane < kBarriers) {
    ptx::mbarrier_init(&smem.barriers.full[0][0] + lane, args.key_loads == KeyLoads::kAsyncCopy ? 64 : 1);
    ptx::mbarrier_init(&smem.barriers.empty[0][0] + lane,
                       Traits::kConsumerThreads / (lanes_give_back<Traits>(args) ? 1 : 32));
  }
  if (lane == kBarriers) ptx::mbarrier_init(&smem.barriers.exchange, 1);
  if (lane < Traits::kBlockN / 32) smem.poison[lane] = 0;
  ptx::fence_mbarrier_init();
}

// What is left of each sequence to another kernel; by one warp of a call.
__device__ __forceinline__ void note_others(const core::SplitSchedule &schedule, int32_t *others) {
#pragma unroll 1
  for (int32_t b = threadIdx.x % 32; b < schedule.batch; b += 32) {
    const core::SplitLengths all = schedule.lengths_of_sequence(b);
    others[b] = schedule.has_more(all) ? all.seqlen_q : 0;
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) __maxnreg__(Traits::kLaunchRegisters)
    split_kernel_sm90(const __grid_constant__ SplitArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warp = ptx::uniform(threadIdx.x / 32);
  constexpr int kConsumerWarps = Traits::kConsumerThreads / 32;
  const core::SplitPartId part = {static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.y)};
  core::SplitSchedule schedule = known_schedule<Traits>(args.schedule);
  std::conditional_t<Traits::kPlain, PlainPartFinder<Traits>, PartFinder<Traits>> finder{schedule, args.partials, smem};
  finder.prefetch();
  const int producer = warp - kConsumerWarps;
  const SplitSide side = producer % 2 == 0 ? kOfK : kOfV;
  if (warp == kConsumerWarps + 3) {  // which has nothing to load first
    init_split<Traits>(args, smem);
    if (ptx::elect_one() && args.key_loads == KeyLoads::kTma) {
      ptx::prefetch_tensormap(&args.k_map);
      ptx::prefetch_tensormap(&args.v_map);
    }
  }
  if constexpr (Traits::kPlain) {
    if (producer >= 0) prefetch_first_block<Traits>(args, schedule, part, side, producer / 2);
  }

  if (schedule.in_clusters()) {
    __syncwarp();  // lanes had blocks of their own to ask for
    ptx::cluster_arrive_relaxed();
  }
  const core::SplitParts parts = finder.find(part);
  if (schedule.in_clusters()) ptx::cluster_wait();  // the barriers of all blocks are there
  const core::SplitCursor cursor = finder.cursor();
  // More keys than pass through L2 drive results out of it before their lines are full, unless these are to stay.
  const bool pass = schedule.balanced() && finder.line_cost(parts) <= args.passing_cost;
  if (warp < kConsumerWarps) {
    const ptx::L2Hint of_results = pass ? ptx::L2Hint::kNormal : ptx::L2Hint::kEvictLast;
    if constexpr (Traits::kByWarps) {
      SplitWarpConsumer<Traits>(args, schedule, smem, of_results).run(cursor, part);
    } else {
      ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
      SplitConsumer<Traits>(args, schedule, smem, of_results).run(cursor, part);
    }
  } else {
    if constexpr (!Traits::kByWarps) ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    const ptx::L2Hint hint = pass ? ptx::L2Hint::kEvictFirst : ptx::L2Hint::kNormal;
    SplitProducer<Traits>(args, schedule, smem, side, producer / 2, hint).run(cursor);
    if constexpr (Traits::kPacked) {
      if (args.others != nullptr && warp == Traits::kThreads / 32 - 1 && part.index + part.line == 0) {
        note_others(schedule, args.others);
      }
    }
    if (threadIdx.x == Traits::kThreads - 1) finder.note(part, parts);
  }
}

}  // namespace flash3::device
