// The end of a piece where the other blocks of the cluster have the tile's other pieces (ClusterExchange): each of them
// stores some of the columns of the whole.
#pragma once

#include <cstdint>

#include "core/split_pieces.h"
#include "device/cluster_exchange.cuh"
#include "device/packed_rows.cuh"
#include "device/ptx.cuh"
#include "device/score_rows.cuh"
#include "device/softmax.cuh"
#include "device/split_store.cuh"
#include "device/warp_sums.cuh"

namespace flash3::device {

template <class Traits>
struct SplitClusters {
  using Element = typename Traits::Element;
  static constexpr int kOutputs = Traits::kHeadDim / 2;  // of a thread of the warpgroup

  typename Traits::SharedStorage &smem;
  const SplitStore<Traits> store;

  // From the accumulators of the products of a warpgroup, in clusters of two. free_buffer: of those for Q; first_row:
  // of the sequence, in out.
  __device__ __forceinline__ void merge(int free_buffer, const core::SplitPiece &piece, int64_t first_row,
                                        const PackedRows &rows, OnlineSoftmax &softmax,
                                        const float (&o)[kOutputs]) const {
    constexpr int kColumns = Traits::kHeadDim / 2;  // of each block
    constexpr int kEights = kOutputs / 8;           // of columns of a block, of which a thread has two each
    static_assert(kEights % 2 == 0, "they are sent two at a time");
    static_assert(kEights * 128 * sizeof(float4) <= sizeof(smem.q[0]), "there is room");
    const SplitArgs &args = store.args;
    using Exchange = ClusterExchange<Traits, 2>;
    const Exchange exchange{smem};
    const bool first = exchange.rank == 0;
    const int lane = threadIdx.x % 32;
    float4 *const places = reinterpret_cast<float4 *>(smem.q[free_buffer]) + threadIdx.x;
    float sum[2];
    if (threadIdx.x == 0) exchange.expect(store.schedule.tile_rows(piece.lengths, piece.m_block));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = quad_sum(softmax.row_sum[r]);
      if (!rows.exists[r]) continue;
      if (lane % 4 == 0) exchange.send_row(0, rows.index(r), softmax.reference[r], sum[r]);
#pragma unroll
      for (int j = 0; j < kEights; j += 2) {
        const auto of_other = [&](int i) {
          const int at = 4 * (j + i / 2) + 2 * r + i % 2;
          return first ? o[4 * kEights + at] : o[at];
        };
        exchange.send(0, &places[(r * kEights + j) / 2 * 128].x, {of_other(0), of_other(1), of_other(2), of_other(3)});
      }
    }
    exchange.wait();
    float own_weight[2], other_weight[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!rows.exists[r]) continue;
      const float2 other = exchange.row_of(0, rows.index(r));
      const float top = fmaxf(softmax.reference[r], other.x);
      own_weight[r] = Exchange::weight(softmax.reference[r], sum[r], top);
      other_weight[r] = Exchange::weight(other.x, other.y, top);
      softmax.reference[r] = top;
      softmax.row_sum[r] = lane % 4 == 0 ? fmaf(sum[r], own_weight[r], other.y * other_weight[r]) : 0.f;
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
        const int col = (first ? 0 : kColumns) + 8 * j + 2 * (lane % 4);
        if (col >= args.head_dim_v) continue;
        const float2 other = reinterpret_cast<const float2 *>(&places[(r * kEights + j) / 2 * 128])[j % 2];
        const auto both = [&](int i, float x) {
          const int at = 4 * j + 2 * r + i;
          const float own = first ? o[at] : o[4 * kEights + at];
          return fmaf(own, own_weight[r], x * other_weight[r]);
        };
        store.two(to + col, results.empty[r], results.factor[r], both(0, other.x), both(1, other.y));
      }
    }
  }

  // From the sums over warps, four columns of a row a thread.
  __device__ __forceinline__ void merge(const core::SplitPiece &piece, int64_t first_row, int32_t rows,
                                        const WarpSums<Traits> &sums) const {
    const uint32_t blocks = store.schedule.cluster_cuts.divisor;
    if (blocks == 8) return merge<8>(piece, first_row, rows, sums);
    if (blocks == 4) return merge<4>(piece, first_row, rows, sums);
    merge<2>(piece, first_row, rows, sums);
  }

 private:
  template <int kBlocks>
  __device__ __forceinline__ void merge(const core::SplitPiece &piece, int64_t first_row, int32_t rows,
                                        const WarpSums<Traits> &sums) const {
    using Exchange = ClusterExchange<Traits, kBlocks>;
    constexpr int kQuads = Exchange::kColumns / 4;
    const Exchange exchange{smem};
    if (threadIdx.x == 0) exchange.expect(rows);
    // Of each row the other blocks' columns, in their order as counted from here.
#pragma unroll 1
    for (int item = threadIdx.x; item < rows * Exchange::kOthers * kQuads; item += Traits::kConsumerThreads) {
      const int row = item / (Exchange::kOthers * kQuads);
      const int quad = item % (Exchange::kOthers * kQuads);
      const int to = quad / kQuads;
      const int col = quad % kQuads * 4;
      const int first_col = static_cast<int>((exchange.rank + 1 + to) % kBlocks) * Exchange::kColumns;
      float4 sum;
      const RowLse of_row = sums.add_up(row, first_col + col, -INFINITY, &sum);
      if (col == 0) exchange.send_row(to, row, of_row.top, sum_of(of_row));
      exchange.send(to, sums.template place_of_other<Exchange::kColumns>(Exchange::number_from(to), row, col), sum);
    }
    exchange.wait();
#pragma unroll 1
    for (int item = threadIdx.x; item < rows * kQuads; item += Traits::kConsumerThreads) {
      const int row = item / kQuads;
      const int col = item % kQuads * 4;
      const int first_col = static_cast<int>(exchange.rank) * Exchange::kColumns;
      const int32_t head = store.head_of(piece, row);
      float4 sum;
      const RowLse of_row = sums.add_up(row, first_col + col, -INFINITY, &sum);
      float top = of_row.top;
#pragma unroll
      for (int i = 0; i < Exchange::kOthers; ++i) top = fmaxf(top, exchange.row_of(i, row).x);
      const float own = Exchange::weight(of_row.top, sum_of(of_row), top);
      float total = sum_of(of_row) * own;
      sum = {sum.x * own, sum.y * own, sum.z * own, sum.w * own};
#pragma unroll 1
      for (int i = 0; i < Exchange::kOthers; ++i) {
        const float2 other = exchange.row_of(i, row);
        const float4 x =
            *reinterpret_cast<const float4 *>(sums.template place_of_other<Exchange::kColumns>(i, row, col));
        const float weight = Exchange::weight(other.x, other.y, top);
        total = fmaf(other.y, weight, total);
        sum = {fmaf(x.x, weight, sum.x), fmaf(x.y, weight, sum.y), fmaf(x.z, weight, sum.z), fmaf(x.w, weight, sum.w)};
      }
      store.four(piece, first_row, row, head, first_col + col, finish_row(top, total, store.sink_of(head)), sum);
    }
  }

  static __device__ __forceinline__ float sum_of(const RowLse &lse) { return lse.total < 0.f ? 0.f : lse.total; }
};

}  // namespace flash3::device
