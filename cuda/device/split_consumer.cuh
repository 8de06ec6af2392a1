// The consumer warpgroup of the split-KV kernel: softmax(Q * K^T) * V over the key blocks of a piece, and its result,
// final where the piece is the whole tile, else partial.
#pragma once

#include <cstdint>

#include "core/mask.h"
#include "core/split_cursor.h"
#include "core/split_schedule.h"
#include "device/cluster.cuh"
#include "device/fwd_args.h"
#include "device/gmma.cuh"
#include "device/pack.cuh"
#include "device/packed_rows.cuh"
#include "device/poison.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/split_args.h"
#include "device/split_clusters.cuh"
#include "device/split_consumer_base.cuh"
#include "device/split_ring.cuh"
#include "device/split_side.cuh"
#include "device/split_store.cuh"
#include "device/split_traits.cuh"

namespace flash3::device {

template <class Traits>
struct SplitConsumer : SplitConsumerBase<Traits, SplitConsumer<Traits>> {
  using Base = SplitConsumerBase<Traits, SplitConsumer<Traits>>;
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;            // scores a thread holds
  static constexpr int kOutputs = Traits::kHeadDim / 2;  // outputs a thread holds

  using Base::Base;

  __device__ __forceinline__ void compute(const core::SplitPiece &piece, const core::SplitCursor &next,
                                          const core::SplitPartId &part) {
    const int64_t first_row = first_row_of(piece);
    const PackedRows rows(schedule, piece, threadIdx.x / 32 * (few_rows() ? 8 : 16), few_rows());
    const core::Mask mask{schedule.window, piece.lengths.seqlen_q, piece.lengths.seqlen_k};
    RowScores scores;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scores.key_begin[r] = mask.key_begin(rows.query[r]);
      scores.key_end[r] = mask.key_end(rows.query[r]);
      scores.diagonal[r] = mask.diagonal(rows.query[r]);
      scores.alibi_slope_log2[r] =
          !modifies_scores() || args.alibi_slopes == nullptr
              ? 0.f
              : args.alibi_slopes[piece.batch * args.alibi_batch_stride + rows.head[r]] * core::kLog2e;
    }
    OnlineSoftmax softmax(modifies_scores() ? 1.f : args.scale_log2);
    float s[kScores], o[kOutputs];
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) o[j] = 0.f;
    // Warps whose rows do not exist take part in the products alone.
    const bool has_rows = ptx::uniform(rows.first_row < schedule.tile_rows(piece.lengths, piece.m_block));
    // Q is there, and all warps have done with the piece before, whose buffer is free.
    sync();
    if (piece.n_begin < piece.n_end) {
      turn_q(piece);
      attend(piece, next, scores, has_rows, softmax, s, o);
    } else {
      load_next_q(next);
    }
    await_q();  // in front of the stores: the fence would wait for them
    const SplitStore<Traits> results{args, schedule, hint};
    if constexpr (Traits::kMergesInClusters) {
      if (schedule.merged_by_clusters() && !(Traits::kPacked && piece.whole)) {
        return SplitClusters<Traits>{smem, results}.merge(q_buffer ^ 1, piece, first_row, rows, softmax, o);
      }
    }
    store(piece, part, first_row, rows, softmax, o, results);
  }

 private:
  using Base::args;
  using Base::await_q;
  using Base::few_rows;
  using Base::first_row_of;
  using Base::hint;
  using Base::k_ring;
  using Base::load_next_q;
  using Base::q_buffer;
  using Base::schedule;
  using Base::smem;
  using Base::sync;
  using Base::turn_q;
  using Base::v_ring;

  // The products Q * K^T of a block and P * V of the block before run under the softmax of the latter.
  // The q of the next piece comes meanwhile.
  __device__ __forceinline__ void attend(const core::SplitPiece &piece, const core::SplitCursor &next,
                                         const RowScores &scores, bool has_rows, OnlineSoftmax &softmax,
                                         float (&s)[kScores], float (&o)[kOutputs]) {
    uint32_t p[kScores / 2];
    float correction[2];
    int32_t n = piece.n_begin;
    issue_qk(s);
    ptx::launch_dependents();
    load_next_q(next);
    wgmma_wait_group<0>();
    finish_qk(piece, scores, n, has_rows, softmax, s, correction);
#pragma unroll 1
    for (; ptx::uniform(n + piece.n_step < piece.n_end); n += piece.n_step) {
      prepare_pv(piece, scores, n, s, o);
      pack_probabilities<Element>(s, p);
      issue_qk(s);
      issue_pv(p, o);
      wgmma_wait_group<1>();
      finish_qk(piece, scores, n + piece.n_step, has_rows, softmax, s, correction);
      wgmma_wait_group<0>();
      fence_accumulators(o);
      release(kOfV, v_ring);
      softmax.rescale(o, correction);
    }
    prepare_pv(piece, scores, n, s, o);
    pack_probabilities<Element>(s, p);
    issue_pv(p, o);
    wgmma_wait_group<0>();
    fence_accumulators(o);
    release(kOfV, v_ring);
  }

  // Once V is there, and before the product.
  __device__ __forceinline__ void prepare_pv(const core::SplitPiece &piece, const RowScores &scores, int32_t n,
                                             const float (&s)[kScores], float (&o)[kOutputs]) const {
    wait_full(kOfV, v_ring);
    // Behind the last key there are zeros: only a window hides keys whose V is there.
    if (!schedule.window.limited() || piece.range.is_full(n)) return;
    const int32_t first_key = n * kBlockN;
    const int32_t begin[2] = {scores.key_begin[0] - first_key, scores.key_begin[1] - first_key};
    const int32_t end[2] = {scores.key_end[0] - first_key, scores.key_end[1] - first_key};
    const core::Mask mask{schedule.window, piece.lengths.seqlen_q, piece.lengths.seqlen_k};
    const int64_t first_row = int64_t{piece.m_block} * schedule.block_m;
    const int32_t rows = schedule.tile_rows(piece.lengths, piece.m_block);
    const auto suspects =
        Suspects::outside(mask.key_begin(schedule.query(first_row + rows - 1)) - first_key,
                          mask.key_end(schedule.query(first_row)) - first_key, min(mask.seqlen_k - first_key, kBlockN));
    Poison<Traits>{smem}.take_out(smem.kv[v_ring.index][kOfV], suspects, s, o, begin, end);
  }

  // For descriptors; thread blocks that merge are those of a cluster.
  static __device__ __forceinline__ uint32_t address(const void *smem) {
    return Traits::kMergesInClusters ? ptx::address_in_block(smem) : ptx::shared_address(smem);
  }

  __device__ __forceinline__ void issue_pv(uint32_t (&p)[kScores / 2], float (&o)[kOutputs]) const {
    const uint32_t v = ptx::uniform(Descriptor::template mn_major<kBlockN>(address(smem.kv[v_ring.index][kOfV])));
    gemm_rs<Element, Traits::kHeadDim, kBlockN, Traits::kSwizzleBytes>(p, v, o);
  }

  __device__ __forceinline__ void issue_qk(float (&s)[kScores]) const {
    const uint32_t q = ptx::uniform(Descriptor::k_major(address(smem.q[q_buffer])));
    const uint32_t k = ptx::uniform(Descriptor::k_major(address(smem.kv[k_ring.index][kOfK])));
    wait_full(kOfK, k_ring);
    gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN>(q, k, s);
  }

  // Once the product is there: gives back K, and turns the scores of block n into probabilities.
  __device__ __forceinline__ void finish_qk(const core::SplitPiece &piece, const RowScores &scores, int32_t n,
                                            bool has_rows, OnlineSoftmax &softmax, float (&s)[kScores],
                                            float (&correction)[2]) {
    fence_accumulators(s);
    release(kOfK, k_ring);
    correction[0] = correction[1] = 1.f;
    if (!has_rows) return;
    const int32_t first_key = n * kBlockN;
    if (modifies_scores()) scores.modify(s, args, first_key);
    if (!piece.range.is_full(n)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        mask_row(s, r, scores.key_begin[r] - first_key, scores.key_end[r] - first_key, schedule.window.left >= 0);
      }
    }
    if (few_rows()) {
      softmax.update_first_row(s, correction);
    } else {
      softmax.update(s, correction);
    }
  }

  __device__ __forceinline__ void wait_full(SplitSide side, const SplitRing &ring) const {
    ptx::mbarrier_wait(&smem.barriers.full[side][ring.index], ring.parity);
    if (args.key_loads == KeyLoads::kAsyncCopy) ptx::fence_proxy_async_shared();
  }

  __device__ __forceinline__ void release(SplitSide side, SplitRing &ring) const {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&smem.barriers.empty[side][ring.index]);
    ring.advance();
  }

  __device__ __forceinline__ bool modifies_scores() const { return !Traits::kPlain && args.modifies_scores; }

  // first_row: of the sequence, in out.
  __device__ __forceinline__ void store(const core::SplitPiece &piece, const core::SplitPartId &part, int64_t first_row,
                                        const PackedRows &rows, const OnlineSoftmax &softmax,
                                        const float (&o)[kOutputs], const SplitStore<Traits> &whole) const {
    const int lane = threadIdx.x % 32;
    OnlineSoftmax::Sinks sinks = {{-INFINITY, -INFINITY}};
    if (piece.whole) sinks = {{whole.sink_of(rows.head[0]), whole.sink_of(rows.head[1])}};
    const RowResults results = softmax.finish(sinks);
    const Partials &partials = args.partials;
    const int32_t number = schedule.number(piece, part);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!rows.exists[r]) continue;
      const int64_t row = first_row + rows.query[r];
      const auto for_each_two = [&](auto put) {
#pragma unroll
        for (int j = 0; j < kOutputs / 4; ++j) {
          const int col = 8 * j + 2 * (lane % 4);
          if (col < args.head_dim_v) put(col, o[4 * j + 2 * r], o[4 * j + 2 * r + 1]);
        }
      };
      const float factor = results.factor[r];
      if (piece.whole) {
        Element *const to = whole.place(piece.batch, row, rows.head[r]);
        if (lane % 4 == 0) whole.lse(piece.batch, row, rows.head[r], results.lse[r]);
        for_each_two([&](int col, float x, float y) { whole.two(to + col, results.empty[r], factor, x, y); });
      } else {
        const int64_t query = args.packed_q ? row : int64_t{piece.batch} * args.seqlen_q + row;
        const int64_t at = partials.row(schedule, number, rows.index(r), query, rows.head[r]);
        if (lane % 4 == 0) partials.lse[at] = results.lse[r].value();
        if (results.empty[r]) continue;  // nobody reads it
        float *const to = partials.out + at * args.head_dim_v;
        for_each_two([&](int col, float x, float y) {
          *reinterpret_cast<float2 *>(to + col) = make_float2(x * factor, y * factor);
        });
      }
    }
  }
};

}  // namespace flash3::device
