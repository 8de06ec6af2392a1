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

// Collective over the thread block: whether whole tiles go to the parts of a balanced schedule.
template <class Traits>
__device__ __forceinline__ bool whole_tiles_do(const core::SplitSchedule &schedule,
                                               typename Traits::SharedStorage &smem) {
  typename Traits::TileCosts costs = {0, 0, 0};
#pragma unroll 1
  for (int32_t b = threadIdx.x; b < schedule.batch; b += Traits::kThreads) {
    const core::SplitLengths lengths = schedule.lengths(b);
    const int32_t m_blocks = schedule.num_m_blocks(lengths);
    costs.tiles += m_blocks;
#pragma unroll 1
    for (int32_t m = 0; m < m_blocks; ++m) {
      const int32_t cost = schedule.tile_cost(schedule.range(lengths, m));
      costs.total += cost;
      costs.largest = max(costs.largest, cost);
    }
  }
  constexpr uint32_t kAll = 0xffffffffu;
  costs = {__reduce_add_sync(kAll, costs.total), __reduce_add_sync(kAll, costs.tiles),
           __reduce_max_sync(kAll, costs.largest)};
  if (threadIdx.x % 32 == 0) smem.tile_costs[threadIdx.x / 32] = costs;
  __syncthreads();
  costs = smem.tile_costs[0];
#pragma unroll 1
  for (int w = 1; w < Traits::kThreads / 32; ++w) {
    const typename Traits::TileCosts &other = smem.tile_costs[w];
    costs = {costs.total + other.total, costs.tiles + other.tiles, max(costs.largest, other.largest)};
  }
  const int32_t heads = schedule.heads_of_line;
  return schedule.whole_tiles_do(costs.total * heads, costs.tiles * heads, costs.largest);
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) mla_kernel_sm90(const __grid_constant__ SplitArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warp = ptx::uniform(threadIdx.x / 32);
  constexpr int kProducerWarp = Traits::kConsumerThreads / 32;
  core::SplitSchedule schedule = args.schedule;
  schedule.block_n = Traits::kBlockN;                     // known to the compiler
  const int blocks = schedule.block_m / Traits::kBlockM;  // of a tile
  const int rank = static_cast<int>(blockIdx.x) % blocks;
  if (warp == kProducerWarp) {
    init_mla<Traits>(smem);
    if (ptx::elect_one() && args.key_loads == KeyLoads::kTma) ptx::prefetch_tensormap(&args.k_map);
  }
  ptx::launch_dependents();  // the merging kernel waits for this one's results
  if (args.follows_append) ptx::wait_for_previous_kernel();

  const bool whole = schedule.balanced() && whole_tiles_do<Traits>(schedule, smem);
  if (whole) schedule.num_splits = 1;

  const core::SplitPartId part = {static_cast<int32_t>(blockIdx.x) / blocks, static_cast<int32_t>(blockIdx.y)};
  const PartFinder<Traits> finder{schedule, args.partials, smem};
  const core::SplitParts parts = finder.find(part);
  const core::SplitCursor cursor = {schedule, smem.part.begin, smem.part.end, smem.part.tile};
  if (warp >= kProducerWarp) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp == kProducerWarp) {
      MlaProducer<Traits>(args, schedule, smem).run(cursor);
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
