// The end of a piece where the block beside this one has the tile's other piece (PairExchange): each of them stores
// half of the columns of the whole.
#pragma once

#include <cstdint>

#include "core/split_pieces.h"
#include "device/packed_rows.cuh"
#include "device/pair_exchange.cuh"
#include "device/ptx.cuh"
#include "device/score_rows.cuh"
#include "device/softmax.cuh"
#include "device/split_store.cuh"
#include "device/warp_sums.cuh"

namespace flash3::device {

template <class Traits>
struct SplitPairs {
  using Element = typename Traits::Element;
  using Exchange = PairExchange<Traits>;
  static constexpr int kOutputs = Traits::kHeadDim / 2;  // of a thread of the warpgroup

  typename Traits::SharedStorage &smem;
  const SplitStore<Traits> store;
  const int free_buffer;  // of those for Q
  const Exchange exchange{smem};

  // first_row: of the sequence, in out. From the accumulators of the products of a warpgroup.
  __device__ __forceinline__ void merge(const core::SplitPiece &piece, int64_t first_row, const PackedRows &rows,
                                        OnlineSoftmax &softmax, const float (&o)[kOutputs]) const {
    constexpr int kEights = kOutputs / 8;  // of columns of a block, of which a thread has two each
    static_assert(kEights % 2 == 0, "they are sent two at a time");
    static_assert(kEights * 128 * sizeof(float4) <= sizeof(smem.q[0]), "there is room");
    const SplitArgs &args = store.args;
    const bool first = exchange.rank == 0;
    const int lane = threadIdx.x % 32;
    float4 *const places = reinterpret_cast<float4 *>(smem.q[free_buffer]) + threadIdx.x;
    float sum[2];
    if (threadIdx.x == 0) exchange.expect(store.schedule.tile_rows(piece.lengths, piece.m_block));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = quad_sum(softmax.row_sum[r]);
      if (!rows.exists[r]) continue;
      if (lane % 4 == 0) exchange.send_row(rows.index(r), softmax.reference[r], sum[r]);
#pragma unroll
      for (int j = 0; j < kEights; j += 2) {
        const auto of_other = [&](int i) {
          const int at = 4 * (j + i / 2) + 2 * r + i % 2;
          return first ? o[4 * kEights + at] : o[at];
        };
        exchange.send(&places[(r * kEights + j) / 2 * 128].x, {of_other(0), of_other(1), of_other(2), of_other(3)});
      }
    }
    exchange.wait();
    typename Exchange::Weights weights[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!rows.exists[r]) continue;
      weights[r] = exchange.weights(rows.index(r), softmax.reference[r], sum[r]);
      softmax.reference[r] = weights[r].top;
      softmax.row_sum[r] = lane % 4 == 0 ? weights[r].total : 0.f;
    }
    const RowResults results = softmax.finish({{store.sink_of(rows.head[0]), store.sink_of(rows.head[1])}});
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!rows.exists[r]) continue;
      const int64_t row = first_row + rows.query[r];
      if (first && lane % 4 == 0) store.lse(piece.batch, row, rows.head[r], results.lse[r]);
      Element *const to = store.place(piece.batch, row, rows.head[r]);
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const int col = (first ? 0 : Exchange::kColumns) + 8 * j + 2 * (lane % 4);
        if (col >= args.head_dim_v) continue;
        const float2 other = reinterpret_cast<const float2 *>(&places[(r * kEights + j) / 2 * 128])[j % 2];
        const auto both = [&](int i, float x) {
          const int at = 4 * j + 2 * r + i;
          const float own = first ? o[at] : o[4 * kEights + at];
          return fmaf(own, weights[r].own, x * weights[r].other);
        };
        store.two(to + col, results.empty[r], results.factor[r], both(0, other.x), both(1, other.y));
      }
    }
  }

  // From the sums over warps, four columns of a row a thread.
  __device__ __forceinline__ void merge(const core::SplitPiece &piece, int64_t first_row, int32_t rows,
                                        const WarpSums<Traits> &sums) const {
    constexpr int kQuads = Exchange::kColumns / 4;
    const int first_col = exchange.rank == 0 ? 0 : Exchange::kColumns;
    if (threadIdx.x == 0) exchange.expect(rows);
#pragma unroll 1
    for (int item = threadIdx.x; item < rows * kQuads; item += Traits::kConsumerThreads) {
      const int row = item / kQuads;
      const int col = item % kQuads * 4;
      float4 sum;
      const RowLse of_row = sums.add_up(row, Exchange::kColumns - first_col + col, -INFINITY, &sum);
      if (col == 0) exchange.send_row(row, of_row.top, sum_of(of_row));
      exchange.send(sums.free_place(free_buffer, row, col), sum);
    }
    exchange.wait();
#pragma unroll 1
    for (int item = threadIdx.x; item < rows * kQuads; item += Traits::kConsumerThreads) {
      const int row = item / kQuads;
      const int col = item % kQuads * 4;
      const int32_t head = store.head_of(piece, row);
      float4 sum;
      const RowLse of_row = sums.add_up(row, first_col + col, -INFINITY, &sum);
      const auto w = exchange.weights(row, of_row.top, sum_of(of_row));
      const float4 other = *reinterpret_cast<const float4 *>(sums.free_place(free_buffer, row, col));
      sum = {fmaf(sum.x, w.own, other.x * w.other), fmaf(sum.y, w.own, other.y * w.other),
             fmaf(sum.z, w.own, other.z * w.other), fmaf(sum.w, w.own, other.w * w.other)};
      store.four(piece, first_row, row, head, first_col + col, finish_row(w.top, w.total, store.sink_of(head)), sum);
    }
  }

 private:
  static __device__ __forceinline__ float sum_of(const RowLse &lse) { return lse.total < 0.f ? 0.f : lse.total; }
};

}  // namespace flash3::device
