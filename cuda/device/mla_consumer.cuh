// The consumer warpgroups of the kernel of latent attention: softmax(Q * K^T) * V over the key blocks of a piece, and
// its result, final where the piece is the whole tile, else partial.
//
// The blocks of a piece are taken in pairs. Warpgroup 0 goes ahead: scores and softmax of its block, product of that
// with its columns, product of the other block with them, behind which its next scores are issued at once. Warpgroup 1
// has its scores on their way meanwhile, then the product of the first block, and under that its softmax. The reference
// of the softmax goes from block to block, hence from warpgroup to warpgroup, so the way from one softmax to the next
// is what the speed hangs on: probabilities are published before anything else is done with them.
#pragma once

#include <cstdint>

#include "core/mask.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/gmma.cuh"
#include "device/mla_exchange.cuh"
#include "device/mla_poison.cuh"
#include "device/mla_store.cuh"
#include "device/mla_traits.cuh"
#include "device/pack.cuh"
#include "device/packed_rows.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/split_args.h"

namespace flash3::device {

template <class Traits, int kGroup>
struct MlaConsumer {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;             // scores a thread holds
  static constexpr int kOutputs = Traits::kHalfCols / 2;  // outputs a thread holds
  static constexpr int kSteps = kBlockN / 16;             // of a product that is one chunk deep
  static constexpr int kPeer = 1 - kGroup;

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  SharedStorage &smem;
  const int rank;                                        // of the thread block, among those of a tile
  const int32_t warp_row = threadIdx.x % 128 / 32 * 16;  // first row of the warp, among those of the thread block
  uint32_t parity = 0;                                   // of this warpgroup's buffer
  MlaExchange<Traits, kGroup> exchange{smem, warp_row};

  __device__ __forceinline__ MlaConsumer(const SplitArgs &a, const core::SplitSchedule &s, SharedStorage &storage,
                                         int which)
      : args(a), schedule(s), smem(storage), rank(which) {}

  __device__ __forceinline__ void run(const core::SplitPartId &part) {
#pragma unroll 1
    for (uint32_t count = 0;; ++count) {
      ptx::mbarrier_wait(&smem.barriers.q_full, count % 2);
      const typename Traits::Job &job = smem.jobs[count % 2];
      if (job.done) return;
      ptx::fence_proxy_async_shared();  // Q came with asynchronous copies
      compute(job.piece, job.q_start, part);
    }
  }

 private:
  // What belongs to a piece while its blocks are computed.
  struct Work {
    const core::SplitPiece &piece;
    RowScores scores;
    bool has_rows;    // warps whose rows do not exist take part in the products alone
    bool hides_keys;  // whether there are keys that not all rows of the tile see
    OnlineSoftmax softmax;
  };

  __device__ __forceinline__ void compute(const core::SplitPiece &piece, int32_t q_start,
                                          const core::SplitPartId &part) {
    Work work = {piece, {}, false, false, OnlineSoftmax(modifies_scores() ? 1.f : args.scale_log2)};
    prepare(work);
    float o[kOutputs];
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) o[j] = 0.f;
    if (piece.n_begin < piece.n_end) {
      attend(work, o);
      exchange.add_sums(work.softmax);
    } else {
      release_q();
    }
    // Made anew, since registers are short in between.
    const PackedRows rows(schedule, piece, rank * Traits::kBlockM + warp_row);
    store_mla<Traits, kGroup>(args, schedule, piece, schedule.number(piece, part), q_start, rows, work.softmax, o);
  }

  __device__ __forceinline__ bool modifies_scores() const { return !Traits::kPlain && args.modifies_scores; }

  __device__ __forceinline__ void prepare(Work &work) const {
    const core::SplitPiece &piece = work.piece;
    const core::Mask mask{schedule.window, piece.lengths.seqlen_q, piece.lengths.seqlen_k};
    const PackedRows rows(schedule, piece, rank * Traits::kBlockM + warp_row);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      work.scores.key_begin[r] = mask.key_begin(rows.query[r]);
      work.scores.key_end[r] = mask.key_end(rows.query[r]);
      work.scores.diagonal[r] = mask.diagonal(rows.query[r]);
      work.scores.alibi_slope_log2[r] =
          Traits::kPlain || args.alibi_slopes == nullptr
              ? 0.f
              : args.alibi_slopes[piece.batch * args.alibi_batch_stride + rows.head[r]] * core::kLog2e;
    }
    work.has_rows = ptx::uniform(rows.first_row < schedule.tile_rows(piece.lengths, piece.m_block));
    work.hides_keys = mask.key_end(0) < piece.lengths.seqlen_k || mask.key_begin(piece.lengths.seqlen_q - 1) > 0;
  }

  __device__ __forceinline__ void attend(Work &work, float (&o)[kOutputs]) {
    float s[kScores];
    uint32_t p[kScores / 2];
    const int32_t begin = ptx::uniform(work.piece.n_begin);
    int32_t n = ptx::uniform(work.piece.n_end) - 1;
    bool pending = false;  // whether the other block's product is on its way
    if (kGroup == 1 && n == begin) release_q();
#pragma unroll 1
    for (; n > begin; n -= 2) {
      compute_scores(s, pending, o);
      if (n - kGroup - 2 < begin) release_q();
      if constexpr (kGroup == 0) {
        own_block(work, n, s, p, o);
        issue_other_block(work, n - 1, o);
        pending = true;
      } else {
        issue_other_block(work, n, o);
        own_block(work, n - 1, s, p, o);
      }
    }
    if (n < begin) {
      if constexpr (kGroup == 0) finish_other_block(o);
    } else if constexpr (kGroup == 0) {
      compute_scores(s, pending, o);
      release_q();
      own_block(work, n, s, p, o);
    } else {
      issue_other_block(work, n, o);
      finish_other_block(o);
    }
  }

  // All chunks of the block, those first that were given back first. The product before, if it is on its way, is
  // finished in passing.
  __device__ __forceinline__ void compute_scores(float (&s)[kScores], bool pending, float (&o)[kOutputs]) {
    const uint32_t q = ptx::uniform(Descriptor::k_major(ptx::shared_address(smem.q)));
    const uint32_t k = ptx::uniform(Descriptor::k_major(ptx::shared_address(smem.k[kGroup])));
    fence_accumulators(s);
#pragma unroll
    for (int i = 0; i < Traits::kHalfChunks; ++i) {
      multiply_chunk(s, q, k, kGroup * Traits::kHalfChunks + i, i == 0 ? ScaleOut::Zero : ScaleOut::One);
    }
    wgmma_commit_group();
    if constexpr (kGroup == 0) {
      wgmma_wait_group<1>();
      fence_accumulators(o);
      if (pending) release(kPeer, Traits::kOther);
    }
#pragma unroll
    for (int i = 0; i < Traits::kHalfChunks; ++i) {
      multiply_chunk(s, q, k, kPeer * Traits::kHalfChunks + i, ScaleOut::One);
    }
    multiply_chunk(s, q, k, Traits::kLastChunk, ScaleOut::One);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    fence_accumulators(s);
    parity ^= 1;
  }

  // Adds to the scores what a chunk of Q and one of K make, once that is there.
  __device__ __forceinline__ void multiply_chunk(float (&s)[kScores], uint32_t q, uint32_t k, int chunk,
                                                 ScaleOut scale) const {
    using Atom = typename Gmma<Element, kBlockN, Major::K>::Ss;
    ptx::mbarrier_wait(&smem.barriers.full[kGroup][chunk], parity);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t at = chunk * (Traits::kChunkBytes / 16) + 2 * step;
      detail::wgmma_ss<Atom>(Descriptor::at(q + at), Descriptor::at(k + at), s, step == 0 ? scale : ScaleOut::One,
                             std::make_index_sequence<kScores>{});
    }
  }

  // From the scores of the block to the product of its probabilities with this warpgroup's columns.
  __device__ __forceinline__ void own_block(Work &work, int32_t n, float (&s)[kScores], uint32_t (&p)[kScores / 2],
                                            float (&o)[kOutputs]) {
    float correction[2] = {1.f, 1.f};
    if (work.has_rows) {
      const int32_t first_key = n * kBlockN;
      if (__builtin_expect(modifies_scores(), false)) work.scores.modify(s, args, first_key);
      if (__builtin_expect(!work.piece.range.is_full(n), false)) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          mask_row(s, r, work.scores.key_begin[r] - first_key, work.scores.key_end[r] - first_key,
                   schedule.window.left >= 0);
        }
      }
      work.softmax.update_lazily(s, n + OnlineSoftmax::exact_blocks(false, kBlockN) >= work.piece.n_end, correction);
    }
    pack_probabilities<Element>(s, p);
    exchange.put_down(work.softmax, correction, p);
    // Published, the place of the probabilities may be given back by the other warpgroup.
    const bool poison = may_hold_poison(work, n);
    if (!poison) exchange.publish();
    if constexpr (kGroup == 1) finish_other_block(o);
    OnlineSoftmax::rescale(o, correction);
    if (poison) {
      take_out_poison(work, n, kGroup, o);
      exchange.publish();
    }
    gemm_rs<Element, Traits::kHalfCols, kBlockN, Traits::kSwizzleBytes>(p, ptx::uniform(values(kGroup)), o);
    fence_accumulators(s);
    if (work.has_rows) work.softmax.add(s);
    wgmma_wait_group<0>();
    fence_accumulators(o);
    release(kGroup, Traits::kOwn);
  }

  // Waits for the probabilities of the other warpgroup's block.
  __device__ __forceinline__ void issue_other_block(Work &work, int32_t n, float (&o)[kOutputs]) {
    float correction[2];
    exchange.receive(work.softmax, correction);
    OnlineSoftmax::rescale(o, correction);
    if (may_hold_poison(work, n)) take_out_poison(work, n, kPeer, o);
    using Atom = typename Gmma<Element, Traits::kHalfCols, Major::MN>::Ss;
    const uint32_t p = ptx::uniform(Descriptor::k_major(ptx::shared_address(smem.k[kPeer][Traits::kLastChunk])));
    const uint32_t v = ptx::uniform(values(kPeer));
    fence_accumulators(o);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      detail::wgmma_ss<Atom>(Descriptor::at(p + 2 * step), Descriptor::at(v + step * Traits::kSwizzleBytes), o,
                             ScaleOut::One, std::make_index_sequence<kOutputs>{});
    }
    wgmma_commit_group();
  }

  __device__ __forceinline__ void finish_other_block(float (&o)[kOutputs]) const {
    wgmma_wait_group<0>();
    fence_accumulators(o);
    release(kPeer, Traits::kOther);
  }

  // This warpgroup's columns of a block, as the B operand.
  __device__ __forceinline__ uint32_t values(int buffer) const {
    return Descriptor::template mn_major<kBlockN>(ptx::shared_address(smem.k[buffer][kGroup * Traits::kHalfChunks]));
  }

  // Behind the last key there are zeros: only a window hides keys whose V is there.
  __device__ __forceinline__ bool may_hold_poison(const Work &work, int32_t n) const {
    return __builtin_expect(ptx::uniform(work.hides_keys && !work.piece.range.is_full(n)), false);
  }

  __device__ __forceinline__ void take_out_poison(const Work &work, int32_t n, int buffer, float (&o)[kOutputs]) const {
    const int32_t first_key = n * kBlockN;
    const int32_t begin[2] = {work.scores.key_begin[0] - first_key, work.scores.key_begin[1] - first_key};
    const int32_t end[2] = {work.scores.key_end[0] - first_key, work.scores.key_end[1] - first_key};
    MlaPoison<Traits, kGroup>{smem}.take_out(&smem.k[buffer][kGroup * Traits::kHalfChunks],
                                             smem.k[buffer][Traits::kLastChunk], o, warp_row, begin, end);
  }

  __device__ __forceinline__ void release(int buffer, int side) const {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&smem.barriers.empty[buffer][side]);
  }

  __device__ __forceinline__ void release_q() const { ptx::mbarrier_arrive(&smem.barriers.q_empty); }
};

}  // namespace flash3::device
