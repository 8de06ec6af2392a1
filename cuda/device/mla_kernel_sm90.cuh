// The kernel of latent attention (MLA): few queries of many heads to cached keys whose first columns are their values,
// dense, packed or paged. It shares out its work as the split-KV kernel does, and what is cut is merged likewise. A
// part is computed by one thread block, or by a cluster of two, which have 64 rows of every tile each and load every
// key once for both.
#pragma once

#include <cstdint>

#include "device/mla_consumer.cuh"
#include "device/mla_producer.cuh"
#include "device/mla_queries.cuh"
#include "device/mla_traits.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_parts.cuh"

namespace flash3::device {

// By one warp.
template <class Traits>
__device__ __forceinline__ void init_mla(typename Traits::SharedStorage &smem, MlaCluster cluster) {
  const int lane = threadIdx.x % 32;
  constexpr int kFull = Traits::kGroups * Traits::kChunks;
  constexpr int kEmpty = Traits::kGroups * Traits::kSides;
  static_assert(kFull <= 32 && kEmpty <= 32, "a barrier a lane");
  if (lane < kFull) ptx::mbarrier_init(&smem.barriers.full[0][0] + lane, 1);
  if (lane < kEmpty) ptx::mbarrier_init(&smem.barriers.empty[0][0] + lane, 4 * cluster.size);
  if (lane == 0) {
    ptx::mbarrier_init(&smem.barriers.q_full, Traits::kQueryThreads + 1);
    ptx::mbarrier_init(&smem.barriers.q_empty, Traits::kConsumerThreads / 32);
  }
  ptx::fence_mbarrier_init();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) mla_kernel_sm90(const __grid_constant__ SplitArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warp = ptx::uniform(threadIdx.x / 32);
  constexpr int kProducerWarp = Traits::kConsumerThreads / 32;
  core::SplitSchedule schedule = args.schedule;
  schedule.block_n = Traits::kBlockN;  // known to the compiler
  const MlaCluster cluster = {schedule.block_m / Traits::kBlockM, static_cast<int32_t>(ptx::block_rank_in_cluster())};
  if (warp == kProducerWarp) {
    init_mla<Traits>(smem, cluster);
    if (ptx::elect_one() && args.key_loads == KeyLoads::kTma) ptx::prefetch_tensormap(&args.k_map);
  }
  ptx::launch_dependents();  // the merging kernel waits for this one's results
  if (args.follows_append) ptx::wait_for_previous_kernel();

  const core::SplitPartId part = {static_cast<int32_t>(blockIdx.x) / cluster.size, static_cast<int32_t>(blockIdx.y)};
  const PartFinder<Traits> finder{schedule, args.partials, smem};
  const core::SplitParts parts = finder.find(part);
  const core::SplitCursor cursor = {schedule, smem.part.begin, smem.part.end, smem.part.tile};
  if (cluster.size > 1) ptx::cluster_sync();  // the barriers of all blocks are there
  if (warp >= kProducerWarp) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp == kProducerWarp) {
      MlaProducer<Traits>(args, schedule, smem, cluster).run(cursor);
    } else {
      const int thread = threadIdx.x - (Traits::kThreads - Traits::kQueryThreads);
      MlaQueries<Traits>{args, schedule, smem, cluster, thread}.run(cursor);
    }
    if (threadIdx.x == Traits::kThreads - 1 && cluster.rank == 0) finder.note(part, parts);
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    if (warp < kProducerWarp / 2) {
      MlaConsumer<Traits, 0>(args, schedule, smem, cluster).run(part);
    } else {
      MlaConsumer<Traits, 1>(args, schedule, smem, cluster).run(part);
    }
  }
  if (cluster.size > 1) ptx::cluster_sync();  // nobody else uses this block's shared memory any more
}

}  // namespace flash3::device
