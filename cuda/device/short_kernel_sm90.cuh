// The forward kernel for short sequences: a block is one warpgroup without a producer and computes tiles of 64 rows,
// and a multiprocessor runs three or four such blocks. A tile of one or two key blocks is a chain of short steps, each
// waiting for the one before: what fills the gaps is not a pipeline inside a tile but other tiles, and the next one of
// the same block, whose loads are under way while this one is computed.
#pragma once

#include <cstdint>

#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/tile_loads.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct ShortKernel {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Job = typename Traits::Job;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;
  static constexpr int kOutputs = Traits::kHeadDim / 2;
  static_assert(Traits::kConsumers == 1 && Traits::kStages == 1 && Traits::kQStages == 1 && Traits::kExactMax);

  const FwdArgs &args;
  SharedStorage &smem;
  const TileLoads<Traits> loads;
  const int warp = ptx::uniform(threadIdx.x / 32);

  __device__ __forceinline__ ShortKernel(const FwdArgs &a, SharedStorage &s) : args(a), smem(s), loads{a, s} {}

  __device__ __forceinline__ void run() {
    if (warp == 0) init_barriers<Traits>(smem);
    RingState<1> q_state = RingState<1>::consumer();
    RingState<1> kv_state = RingState<1>::consumer();
    for (uint32_t i = 0;; ++i) {
      if (warp == 0) find_tile(i);
      if (i == 0) {
        __syncthreads();
        load_first(0, q_state, kv_state);
      } else {
        compute(i - 1, q_state, kv_state);
      }
      if (!ptx::uniform(tile(i).valid != 0)) break;
    }
    ptx::tma_store_wait_read();  // the copy engine still reads this block's shared memory
  }

 private:
  // The i-th tile of this block, counting the one behind its last. A slot is used again by the fourth tile after: by
  // then all warps have met at a named barrier since they read it.
  __device__ __forceinline__ WorkTile &tile(uint32_t i) const { return smem.tile[i % Traits::kTileSlots]; }
  __device__ __forceinline__ Job &job(uint32_t i) const { return smem.job[i % Traits::kTileSlots]; }

  // In the first warp: finds out what the block's i-th tile is.
  //
  // Packed q: the tiles of a call are num_m_blocks for every sequence and head. A longer sequence has more, by that
  // stride, which belong to the same block: `round` counts them. So nothing has to be prepared on the device.
  __device__ __forceinline__ void find_tile(uint32_t i) const {
    const bool packed = Traits::packed(args.q_side);
    int64_t t = i == 0 ? blockIdx.x : job(i - 1).number;
    int32_t round = 0;
    if (i > 0 && packed) round = job(i - 1).round + 1;
    if (i > 0 && !packed) t += gridDim.x;
    WorkTile found = {};
    Job its_job = {};
#pragma unroll 1
    for (; t < args.num_tiles; t += gridDim.x, round = 0) {
      core::Tile where;
      if (packed) {
        const uint32_t column = args.m_blocks_divisor.quotient(static_cast<uint32_t>(t));
        const uint32_t batch = args.dense_schedule.nheads.quotient(column);
        where.batch = static_cast<int32_t>(batch);
        where.head = static_cast<int32_t>(column - batch * args.nheads);
        where.m_block = static_cast<int32_t>(t - int64_t{column} * args.num_m_blocks) + round * args.num_m_blocks;
      } else {
        where = loads.decode(static_cast<int32_t>(t));
      }
      if (loads.describe(where, &found, &its_job)) break;
    }
    its_job.number = static_cast<int32_t>(t);
    its_job.round = round;
    if (ptx::elect_one()) {
      tile(i) = found;
      job(i) = its_job;
    }
    __syncwarp();
  }

  // The first loads of tile i, if it has any, into buffers that are free.
  __device__ __forceinline__ void load_first(uint32_t i, RingState<1> q_state, RingState<1> kv_state) const {
    if (warp != 0 || job(i).range.count() == 0) return;
    const RingState<1> kv = {kv_state.step + 1};
    loads.load(loads.load_of_q(job(i), {q_state.step + 1}));
    loads.load(loads.load_of_k(job(i), job(i).range.end - 1, kv));
    loads.load(loads.load_of_v(job(i), job(i).range.end - 1, kv));
  }

  // Tile i, whose first loads are under way, and the first loads of the next one.
  __device__ __forceinline__ void compute(uint32_t i, RingState<1> &q_state, RingState<1> &kv_state) const {
    const WorkTile &tile = this->tile(i);
    const core::BlockRange range = {ptx::uniform(tile.range.begin), ptx::uniform(tile.range.end),
                                    ptx::uniform(tile.range.full_begin), ptx::uniform(tile.range.full_end)};
    const Epilogue<Traits> epilogue(args, 0);
    // Into the place of the block that the consumers are at, once they have given it back.
    const RingState<1> next_q = {q_state.step + 2};
    const auto next_kv = [&] { return RingState<1>{kv_state.step + 2}; };
    if (ptx::uniform(range.begin == range.end)) {
      epilogue.store_empty(tile);
      ptx::bar_sync(NamedBarriers<Traits>::turn(0), 128);
      // Nothing has been loaded for this tile, so the next one is the next to use the buffers.
      load_first(i + 1, q_state, kv_state);
      return;
    }
    const uint32_t q = ptx::uniform(Descriptor::k_major(ptx::shared_address(smem.q[0])));
    const uint32_t k = ptx::uniform(Descriptor::k_major(ptx::shared_address(smem.k[0])));
    const uint32_t v = ptx::uniform(Descriptor::template mn_major<kBlockN>(ptx::shared_address(smem.v[0])));
    OnlineSoftmax softmax(Traits::kScoreMod ? 1.f : args.scale_log2);
    const float slope = Traits::kScoreMod ? alibi_slope(args, tile) : 0.f;
    float s[kScores], o[kOutputs];
    uint32_t p[kScores / 2];
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) o[j] = 0.f;

    ptx::mbarrier_wait(&smem.barriers.q_full[0], q_state.parity());
    q_state.advance();
#pragma unroll 1
    for (int32_t n = range.end - 1; ptx::uniform(n >= range.begin); --n) {
      const bool last = ptx::uniform(n == range.begin);
      // The key block that is loaded next: of this tile, or the first one of the next tile, which only the first warp
      // knows yet.
      const uint32_t of_tile = last ? i + 1 : i;
      const auto next_n = [&] { return (last ? job(of_tile).range.end : n) - 1; };
      const auto has_next = [&] { return warp == 0 && (!last || job(of_tile).range.count() > 0); };

      ptx::mbarrier_wait(&smem.barriers.k_full[0], kv_state.parity());
      gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN>(q, k, s);
      wgmma_wait_group<0>();
      fence_accumulators(s);
      if (threadIdx.x % 32 == 0) {
        ptx::mbarrier_arrive(&smem.barriers.k_empty[0]);
        if (last) ptx::mbarrier_arrive(&smem.barriers.q_empty[0]);
      }
      if (has_next()) {
        if (last) loads.load(loads.load_of_q(job(of_tile), next_q));
        loads.load(loads.load_of_k(job(of_tile), next_n(), next_kv()));
      }

      const int64_t first_row = Traits::warp_row(tile, 0);
      if constexpr (Traits::kScoreMod) RowScores(args, tile, first_row, slope).modify(s, args, n * kBlockN);
      if (!range.is_full(n)) {
        const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
        mask_scores(s, core::BlockMask::make(mask, first_row, int64_t{n} * kBlockN), args.window.left >= 0);
      }
      float correction[2];
      softmax.update(s, correction);
      softmax.rescale(o, correction);
      pack_probabilities<Element>(s, p);
      ptx::mbarrier_wait(&smem.barriers.v_full[0], kv_state.parity());
      gemm_rs<Element, Traits::kHeadDim, kBlockN, Traits::kSwizzleBytes>(p, v, o);
      if (last && ptx::elect_one()) ptx::tma_store_wait_read();  // the output is staged next
      wgmma_wait_group<0>();
      fence_accumulators(o);
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&smem.barriers.v_empty[0]);
      if (has_next()) loads.load(loads.load_of_v(job(of_tile), next_n(), next_kv()));
      kv_state.advance();
    }
    const RowResults results = epilogue.finish_rows(tile, softmax);
    ptx::bar_sync(NamedBarriers<Traits>::turn(0), 128);  // the output of the tile before has left its place
    epilogue.store(tile, results, o, smem.own_out);
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerSm)
    short_fwd_kernel_sm90(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  ShortKernel<Traits>(args, *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory)).run();
}

}  // namespace flash3::device
