// The forward kernel for few keys: all keys of a sequence fit two key blocks. K and V of a sequence and KV head are
// loaded once and stay until all tiles of the query heads that share them are done. Every consumer warpgroup works on a
// tile of its own: such a tile is a chain of steps, each waiting for the one before, and what fills the gaps is the
// chains of the other warpgroups.
#pragma once

#include <cstdint>

#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/resident_producer.cuh"
#include "device/resident_traits.cuh"

namespace flash3::device {

template <class Traits>
struct ResidentConsumer {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;  // that a thread holds of a key block
  static constexpr int kOutputs = Traits::kHeadDimV / 2;

  const FwdArgs &args;
  SharedStorage &smem;
  const int stream;
  const uint32_t q, k_low, v_low;  // low words of descriptors, of K and V in the first stage
  RingState<Traits::kStages> kv_state = RingState<Traits::kStages>::consumer();

  __device__ __forceinline__ ResidentConsumer(const FwdArgs &a, SharedStorage &s, int st)
      : args(a),
        smem(s),
        stream(st),
        q(ptx::uniform(Descriptor::k_major(ptx::shared_address(s.q[st])))),
        k_low(ptx::uniform(Descriptor::k_major(ptx::shared_address(s.k)))),
        v_low(ptx::uniform(Descriptor::template mn_major<kBlockN>(ptx::shared_address(s.v)))) {}

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (RingState<1> q_state = RingState<1>::consumer();; q_state.advance()) {
      ptx::mbarrier_wait(&smem.barriers.q_full[stream], q_state.parity());
      // The producer's count of tiles is one ahead.
      const ResidentTile &tile = smem.tile[stream][(q_state.step + 1) % Traits::kTileSlots];
      release_unread(tile.skipped);
      if (ptx::uniform(tile.valid == 0)) break;
      compute(tile);
    }
    ptx::tma_store_wait_read();
  }

 private:
  static __device__ __forceinline__ void arrive(uint64_t *barrier) {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
  }

  // Gives key blocks back unread. They must have come: the buffers are filled again when all have given them back.
  __device__ __forceinline__ void release_unread(int32_t blocks) {
#pragma unroll 1
    for (; ptx::uniform(blocks > 0); --blocks) {
      const uint32_t i = kv_state.index();
      ptx::mbarrier_wait(&smem.barriers.k_full[i], kv_state.parity());
      ptx::mbarrier_wait(&smem.barriers.v_full[i], kv_state.parity());
      arrive(&smem.barriers.k_empty[i]);
      arrive(&smem.barriers.v_empty[i]);
      kv_state.advance();
    }
  }

  __device__ __forceinline__ void compute(const ResidentTile &tile) {
    const Epilogue<Traits> epilogue(args, 0);
    if (ptx::uniform(tile.range.count() == 0)) {
      ptx::mbarrier_arrive(&smem.barriers.q_empty[stream]);
      epilogue.store_empty(tile);
      if (ptx::uniform(tile.last)) release_unread(tile.key_blocks);
      return;
    }
    const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
    float o[kOutputs];
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) o[j] = 0.f;
    RowResults results;
    if (Traits::kVarlen && ptx::uniform(tile.key_blocks > Traits::kKeptBlocks)) {
      results = attend_all(tile, mask, o);
    } else if (ptx::uniform(tile.range.end == 1)) {
      results = attend<1>(tile, mask, o);
    } else {
      results = attend<2>(tile, mask, o);
    }
    ptx::bar_sync(NamedBarriers<Traits>::turn(0), 128);  // the output of the tile before has left its place
    epilogue.store(tile, results, o, smem.out[stream]);
  }

  // To the first key blocks, which stay; no row sees more. Leaves the last product done.
  template <int kBlocks>
  __device__ __forceinline__ RowResults attend(const ResidentTile &tile, const core::Mask &mask, float (&o)[kOutputs]) {
    float s[kBlocks * kScores];
    const RingState<Traits::kStages> first = kv_state;
    const auto block = [&](int j) { return RingState<Traits::kStages>{first.step + j}; };
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      ptx::mbarrier_wait(&smem.barriers.k_full[block(j).index()], block(j).parity());
      issue_qk(block(j), *reinterpret_cast<float(*)[kScores]>(s + j * kScores));
    }
    wgmma_wait_group<0>();
    fence_accumulators(s);
    ptx::mbarrier_arrive(&smem.barriers.q_empty[stream]);  // every thread, as all of them have read the tile before
    const bool last = ptx::uniform(tile.last);
    if (last) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) arrive(&smem.barriers.k_empty[block(j).index()]);
    }
    modify_and_mask(tile, mask, 0, s);
    OnlineSoftmax softmax(Traits::kScoreMod ? 1.f : args.scale_log2);
    float correction[2];
    softmax.update(s, correction);
    uint32_t p[kBlocks * kScores / 2];
    pack_probabilities<Element>(s, p);
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      ptx::mbarrier_wait(&smem.barriers.v_full[block(j).index()], block(j).parity());
      issue_pv(*reinterpret_cast<uint32_t(*)[kScores / 2]>(p + j * kScores / 2), block(j), o);
    }
    const RowResults results = finish(tile, softmax, o);
    if (last) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) arrive(&smem.barriers.v_empty[block(j).index()]);
      kv_state.step += kBlocks;
      release_unread(tile.key_blocks - kBlocks);
    }
    return results;
  }

  // To all key blocks, where they are too many to stay: one after the other, each given back at once.
  __device__ __forceinline__ RowResults attend_all(const ResidentTile &tile, const core::Mask &mask,
                                                   float (&o)[kOutputs]) {
    OnlineSoftmax softmax(Traits::kScoreMod ? 1.f : args.scale_log2);
    release_unread(tile.range.begin);
#pragma unroll 1
    for (int32_t n = tile.range.begin; ptx::uniform(n < tile.range.end); ++n) {
      float s[kScores], correction[2];
      uint32_t p[kScores / 2];
      const uint32_t i = kv_state.index();
      ptx::mbarrier_wait(&smem.barriers.k_full[i], kv_state.parity());
      issue_qk(kv_state, s);
      wgmma_wait_group<0>();
      fence_accumulators(s);
      arrive(&smem.barriers.k_empty[i]);
      modify_and_mask(tile, mask, n, s);
      softmax.update(s, correction);
      softmax.rescale(o, correction);
      pack_probabilities<Element>(s, p);
      ptx::mbarrier_wait(&smem.barriers.v_full[i], kv_state.parity());
      issue_pv(p, kv_state, o);
      wgmma_wait_group<0>();
      fence_accumulators(o);
      arrive(&smem.barriers.v_empty[i]);
      kv_state.advance();
    }
    release_unread(tile.key_blocks - tile.range.end);
    ptx::mbarrier_arrive(&smem.barriers.q_empty[stream]);
    return finish(tile, softmax, o);
  }

  __device__ __forceinline__ void issue_qk(RingState<Traits::kStages> block, float (&s)[kScores]) const {
    gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN>(
        q, k_low + block.index() * (Traits::kKBytes / 16), s);
  }
  __device__ __forceinline__ void issue_pv(uint32_t (&p)[kScores / 2], RingState<Traits::kStages> block,
                                           float (&o)[kOutputs]) const {
    gemm_rs<Element, Traits::kHeadDimV, kBlockN, Traits::kSwizzleBytes>(
        p, v_low + block.index() * (Traits::kVBytes / 16), o);
  }

  // Of key block n and as many behind it as `s` has scores of.
  template <int kS>
  __device__ __forceinline__ void modify_and_mask(const ResidentTile &tile, const core::Mask &mask, int32_t n,
                                                  float (&s)[kS]) const {
    const int64_t first_row = Traits::warp_row(tile, 0);
    if constexpr (Traits::kScoreMod) {
      RowScores(args, tile, first_row, alibi_slope(args, tile)).modify(s, args, n * kBlockN);
    }
    mask_scores(s, core::BlockMask::make(mask, first_row, int64_t{n} * kBlockN), args.window.left >= 0);
  }

  // Row results under the last product; both are done when this returns, and the store of the tile before has been
  // read.
  __device__ __forceinline__ RowResults finish(const ResidentTile &tile, const OnlineSoftmax &softmax,
                                               float (&o)[kOutputs]) const {
    const RowResults results = Epilogue<Traits>(args, 0).finish_rows(tile, softmax);
    if (ptx::elect_one()) ptx::tma_store_wait_read();
    wgmma_wait_group<0>();
    fence_accumulators(o);
    return results;
  }
};

// By one whole warp: those of the first loads, or the others.
template <class Traits, bool kFirst>
__device__ __forceinline__ void init_resident_barriers(typename Traits::SharedStorage &smem) {
  if (ptx::elect_one()) {
#pragma unroll
    for (int i = 0; i < Traits::kBarriers; ++i) {
      if (Traits::is_first(i) != kFirst) continue;
      ptx::mbarrier_init(&smem.barriers.q_full[0] + i, Traits::arrivals(i));
    }
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) resident_fwd_kernel_sm90(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warpgroup = ptx::uniform(threadIdx.x / 128);
  const int warp = ptx::uniform(threadIdx.x / 32);
  if (warp == 4 && ptx::elect_one()) prefetch_tensormaps(args);
  KeyProducer<Traits> keys(args, smem);
  QueryProducer<Traits> queries(args, smem, warp - 1);
  if (warpgroup == 0) {
    if (warp == 0) init_resident_barriers<Traits, true>(smem);
    ptx::bar_sync(2 * Traits::kWarpgroups, 128);  // behind those of NamedBarriers
    if (warp == 0) {
      keys.start();
      init_resident_barriers<Traits, false>(smem);
    } else {
      queries.start();
    }
  }
  __syncthreads();
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    if (warp == 0) {
      keys.run();
    } else {
      queries.run();
    }
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    ResidentConsumer<Traits>(args, smem, warpgroup - 1).run();
  }
}

}  // namespace flash3::device
