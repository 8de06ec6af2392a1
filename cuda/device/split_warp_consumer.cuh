// The consumer warps of the split-KV kernel for tiles of up to core::kWarpRows rows: each warp computes softmax(Q *
// K^T) * V over a quarter of the keys of every block, with references of its own, and in the end the warps add up.
//
// The products of a warpgroup have 64 rows, and what follows them takes their time however few of those exist. Those of
// a warp, of which the keys are the rows, have eight columns, and no warp waits for another one before the end of a
// piece. Both are transposed: S^T = K * Q^T and O^T = V^T * P^T, so that K and V are the operands of 16 rows.
#pragma once

#include <cstdint>

#include "core/split_config.h"
#include "core/split_cursor.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_clusters.cuh"
#include "device/split_consumer_base.cuh"
#include "device/split_ring.cuh"
#include "device/split_side.cuh"
#include "device/split_store.cuh"
#include "device/warp_mma.cuh"
#include "device/warp_sums.cuh"

namespace flash3::device {

template <class Traits>
struct SplitWarpConsumer : SplitConsumerBase<Traits, SplitWarpConsumer<Traits>> {
  using Base = SplitConsumerBase<Traits, SplitWarpConsumer<Traits>>;
  using Element = typename Traits::Element;
  static constexpr int kRows = core::kWarpRows;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kHeadDim = Traits::kHeadDim;
  static constexpr int kWarps = Traits::kConsumerThreads / 32;
  static constexpr int kKeys = kBlockN / kWarps;  // of a block, for a warp
  static constexpr int kGroups = kKeys / 16;      // of keys, the rows of a product
  static constexpr int kSteps = kHeadDim / 16;    // of columns
  static_assert(kRows == 8, "the columns of a product");
  static_assert(kKeys % 16 == 0 && kSteps % 2 == 0, "whole products, and whole loads of q");

  using Base::Base;

  __device__ __forceinline__ void compute(const core::SplitPiece &piece, const core::SplitCursor &next,
                                          const core::SplitPartId &part) {
    const int32_t rows = schedule.tile_rows(piece.lengths, piece.m_block);
    RowPair state;
    float o[kSteps][4] = {};
    sync();
    if (piece.n_begin < piece.n_end) {
      turn_q(piece);
      uint32_t q[kSteps][2];
      read_q(rows, q);
      load_next_q(next);
      attend(piece, q, state, o);
    } else {
      load_next_q(next);
    }
    await_q();
    const WarpSums<Traits> sums{smem};
    sums.put(rows, state, o);
    sync();
    const SplitStore<Traits> results{args, schedule, hint};
    const int64_t first_row = first_row_of(piece);
    if (schedule.merged_by_clusters() && !(Traits::kPacked && piece.whole)) {
      return SplitClusters<Traits>{smem, results}.merge(piece, first_row, rows, sums);
    }
    store(piece, part, first_row, rows, sums, results);
  }

 private:
  using Base::args;
  using Base::await_q;
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
  using Atom = typename WarpMma<Element>::Atom;

  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Of the 16 bytes of K and V that the lane names to ldmatrix in the first step of columns.
  const uint32_t k_at = offset_of(lane / 8 % 2 * 8 + lane % 8, lane / 16 * 8);
  const uint32_t v_at = offset_of(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);

  // Byte offset in a key block, of a key of the warp.
  __device__ __forceinline__ uint32_t offset_of(int key, int col) const {
    return Traits::template offset<kBlockN>(warp * kKeys + key, col);
  }
  // The address of the same columns of another step, and of another group of keys: the swizzle exchanges pieces of a
  // row by its number, which both have in common.
  static __device__ __forceinline__ uint32_t moved(uint32_t first, int step, int group) {
    constexpr int kColumnBlock = kBlockN * Traits::kSwizzleBytes;
    const int col = 16 * step;
    return (first ^ (col % Traits::kBoxCols * 2)) + col / Traits::kBoxCols * kColumnBlock +
           group * 16 * Traits::kSwizzleBytes;
  }

  static __device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Atom::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]);
  }

  // As the operand of eight columns. Rows that do not exist are zero, and like any other row then.
  __device__ __forceinline__ void read_q(int32_t rows, uint32_t (&q)[kSteps][2]) const {
    const uint32_t from = ptx::shared_address(smem.q[q_buffer]);
#pragma unroll
    for (int t = 0; t < kSteps; t += 2) {
      uint32_t two[4];
      ptx::ldmatrix_x4(from + Traits::template offset<Traits::kBlockM>(lane % 8, 16 * t + lane / 8 * 8), two);
#pragma unroll
      for (int i = 0; i < 4; ++i) q[t + i / 2][i % 2] = lane / 4 < rows ? two[i] : 0;
    }
  }

  __device__ __forceinline__ void attend(const core::SplitPiece &piece, const uint32_t (&q)[kSteps][2], RowPair &state,
                                         float (&o)[kSteps][4]) {
#pragma unroll 1
    for (int32_t n = piece.n_begin; ptx::uniform(n < piece.n_end); n += piece.n_step) {
      float s[kGroups][4];
      multiply_qk(q, s);
      if (n == piece.n_begin) ptx::launch_dependents();
      if (!piece.range.is_full(n)) mask(s, piece.lengths.seqlen_k - n * kBlockN - warp * kKeys);
      raise(s, state, o);
      uint32_t p[kGroups][2];
      exponentials(s, state, p);
      multiply_pv(p, o);
    }
  }

  __device__ __forceinline__ void multiply_qk(const uint32_t (&q)[kSteps][2], float (&s)[kGroups][4]) {
    constexpr int kChains = 4;  // so that a product need not wait for the one before
    const uint32_t k = ptx::shared_address(smem.kv[k_ring.index][kOfK]) + k_at;
    ptx::mbarrier_wait(&smem.barriers.full[kOfK][k_ring.index], k_ring.parity);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float sums[kChains][4] = {};
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        uint32_t a[4];
        ptx::ldmatrix_x4(moved(k, t, g), a);
        multiply_add(sums[t % kChains], a, q[t]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) s[g][i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
    uint32_t seen = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) seen |= __float_as_uint(s[g][0]);
    give_back(kOfK, k_ring, seen);
  }

  __device__ __forceinline__ void multiply_pv(const uint32_t (&p)[kGroups][2], float (&o)[kSteps][4]) {
    const uint32_t v = ptx::shared_address(smem.kv[v_ring.index][kOfV]) + v_at;
    ptx::mbarrier_wait(&smem.barriers.full[kOfV][v_ring.index], v_ring.parity);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        uint32_t a[4];
        ptx::ldmatrix_x4_trans(moved(v, t, g), a);
        multiply_add(o[t], a, p[g]);
      }
    }
    uint32_t seen = 0;
#pragma unroll
    for (int t = 0; t < kSteps; ++t) seen |= __float_as_uint(o[t][0]);
    give_back(kOfV, v_ring, seen);
  }

  // A block that the warp has read; `seen`: bits of what every load from it has led to. The copy engine may write into
  // it at once, and does where rows behind the last key are filled with zeros, which takes no way to memory. So the
  // loads must have arrived, which an arrival on a barrier does not wait for: it has to ask for their values.
  __device__ __forceinline__ void give_back(SplitSide side, SplitRing &ring, uint32_t seen) const {
    __syncwarp();
    if (lane == 0 || lanes_give_back<Traits>(args))
      ptx::mbarrier_arrive(&smem.barriers.empty[side][ring.index] + (seen & args.zero));
    ring.advance();
  }

  // Score s[g][i] is that of key 16 * g + i / 2 * 8 + lane / 4 of the warp and the thread's row i % 2. Hides keys from
  // `end` on.
  __device__ __forceinline__ void mask(float (&s)[kGroups][4], int32_t end) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (16 * g + i / 2 * 8 + lane / 4 >= end) s[g][i] = -INFINITY;
      }
    }
  }

  // Raises the references to the maxima of the warp's scores where these are larger. That is soon no longer the case
  // for any row, so threads ask first, each for its own scores.
  __device__ __forceinline__ void raise(const float (&s)[kGroups][4], RowPair &state, float (&o)[kSteps][4]) const {
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(s[0][r], s[0][r + 2]);
#pragma unroll
      for (int g = 1; g < kGroups; ++g) top[r] = fmaxf(top[r], fmaxf(s[g][r], s[g][r + 2]));
      top[r] *= args.scale_log2;
    }
    if (!ptx::uniform(top[0] > state.reference[0] || top[1] > state.reference[1])) return;
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], lanes));
      const bool grows = top[r] > state.reference[r];
      correction[r] = grows ? ptx::ex2(state.reference[r] - top[r]) : 1.f;
      state.reference[r] = grows ? top[r] : state.reference[r];
      state.sum[r] *= correction[r];
    }
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[t][i] *= correction[i % 2];
    }
  }

  // Probabilities as the operand of eight columns, whose rows are keys.
  __device__ __forceinline__ void exponentials(const float (&s)[kGroups][4], RowPair &state,
                                               uint32_t (&p)[kGroups][2]) const {
    float shift[2];  // relative to 0, masked scores of a row without a reference give 0
#pragma unroll
    for (int r = 0; r < 2; ++r) shift[r] = state.reference[r] == -INFINITY ? 0.f : state.reference[r];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = ptx::ex2(fmaf(s[g][i], args.scale_log2, -shift[i % 2]));
        state.sum[i % 2] += x[i];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) p[g][i] = ptx::movmatrix_trans(pack2<Element>(x[2 * i], x[2 * i + 1]));
    }
  }

  // The sums over warps, four columns of a row a thread.
  __device__ __forceinline__ void store(const core::SplitPiece &piece, const core::SplitPartId &part, int64_t first_row,
                                        int32_t rows, const WarpSums<Traits> &sums,
                                        const SplitStore<Traits> &results) const {
    constexpr int kQuads = kHeadDim / 4;
#pragma unroll 1
    for (int item = threadIdx.x; item < rows * kQuads; item += Traits::kConsumerThreads) {
      const int row = item / kQuads;
      const int col = item % kQuads * 4;
      const int32_t head = results.head_of(piece, row);
      const float sink = piece.whole ? results.sink_of(head) : -INFINITY;
      float4 sum;
      const RowLse lse = sums.add_up(row, col, sink, &sum);
      const bool empty = lse.total < 0.f;
      const float factor = empty ? 0.f : ptx::rcp(lse.total);
      if (piece.whole) {
        results.four(piece, first_row, row, head, col, {lse, factor, empty}, sum);
      } else {
        const Partials &partials = args.partials;
        // Of a balanced schedule, to whose numbers queries are no matter.
        const int64_t to = partials.row(schedule, schedule.number(piece, part), row, 0, head);
        if (col == 0) partials.lse[to] = lse.value();
        if (col >= args.head_dim_v) continue;
        *reinterpret_cast<float4 *>(partials.out + to * args.head_dim_v + col) =
            make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
      }
    }
  }
};

}  // namespace flash3::device
