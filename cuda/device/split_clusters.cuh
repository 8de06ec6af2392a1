// The end of a piece where the other blocks of the cluster have the tile's other pieces (ClusterExchange): each of them
// stores some of the columns of the whole.
#pragma once

#include <cstdint>

#include "core/split_config.h"
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

  // From the accumulators of the products of a warpgroup. free_buffer: of those for Q; first_row: of the sequence, in
  // out.
  __device__ __forceinline__ void merge(int free_buffer, const core::SplitPiece &piece, int64_t first_row,
                                        const PackedRows &rows, OnlineSoftmax &softmax,
                                        const float (&o)[kOutputs]) const {
    const uint32_t blocks = store.schedule.cluster_cuts.divisor;
    if constexpr (core::warpgroups_exchange(Traits::kHeadDim, 8)) {
      if (blocks == 8) return merge<8>(free_buffer, piece, first_row, rows, softmax, o);
    }
    if constexpr (core::warpgroups_exchange(Traits::kHeadDim, 4)) {
      if (blocks == 4) return merge<4>(free_buffer, piece, first_row, rows, softmax, o);
    }
    merge<2>(free_buffer, piece, first_row, rows, softmax, o);
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
  // More than two blocks have few rows (SplitArgs::few_rows), one for each thread.
  template <int kBlocks>
  __device__ __forceinline__ void merge(int free_buffer, const core::SplitPiece &piece, int64_t first_row,
                                        const PackedRows &rows, OnlineSoftmax &softmax,
                                        const float (&o)[kOutputs]) const {
    using Exchange = ClusterExchange<Traits, kBlocks>;
    constexpr int kRows = kBlocks == 2 ? 2 : 1;
    constexpr int kEights = Exchange::kColumns / 8;  // of columns of a block, of which a thread has two each
    constexpr int kOthers = Exchange::kOthers;
    static_assert(kEights % 2 == 0, "they are sent two at a time");
    static_assert(kOthers * kRows * kEights / 2 * 128 * sizeof(float4) <= sizeof(smem.q[0]), "there is room");
    const Exchange exchange{smem};
    const int lane = threadIdx.x % 32;
    const auto place = [&](int other, int r, int j) {
      return reinterpret_cast<float4 *>(smem.q[free_buffer]) + ((other * kRows + r) * kEights + j) / 2 * 128 +
             threadIdx.x;
    };
    // Of those that a block is responsible for. Registers cannot be asked for by number.
    const auto columns_of = [&](uint32_t rank, int r, int j) {
      float2 two;
#pragma unroll
      for (uint32_t i = 0; i < kBlocks; ++i) {
        const float *const own = &o[4 * (i * kEights + j) + 2 * r];
        if (i == 0 || i == rank) two = {own[0], own[1]};
      }
      return two;
    };
    float sum[2];
    if (threadIdx.x == 0) exchange.expect(store.schedule.tile_rows(piece.lengths, piece.m_block));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = quad_sum(softmax.row_sum[r]);
      if (!rows.exists[r]) continue;
#pragma unroll
      for (int to = 0; to < kOthers; ++to) {
        const uint32_t rank = exchange.rank_of(to);
        if (lane % 4 == 0) exchange.send_row(to, rows.index(r), softmax.reference[r], sum[r]);
#pragma unroll
        for (int j = 0; j < kEights; j += 2) {
          const float2 x = columns_of(rank, r, j), y = columns_of(rank, r, j + 1);
          exchange.send(to, &place(Exchange::number_from(to), r, j)->x, {x.x, x.y, y.x, y.y});
        }
      }
    }
    exchange.wait();
    float own_weight[kRows], weights[kRows][kOthers];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!rows.exists[r]) continue;
      const float own = softmax.reference[r];
      const float top = exchange.top_of_all(rows.index(r), own);
      own_weight[r] = Exchange::weight(own, sum[r], top);
      float total = sum[r] * own_weight[r];
#pragma unroll
      for (int i = 0; i < kOthers; ++i) {
        const float2 other = exchange.row_of(i, rows.index(r));
        weights[r][i] = Exchange::weight(other.x, other.y, top);
        total = fmaf(other.y, weights[r][i], total);
      }
      softmax.reference[r] = top;
      softmax.row_sum[r] = lane % 4 == 0 ? total : 0.f;
    }
    const RowResults results = softmax.finish({{store.sink_of(rows.head[0]), store.sink_of(rows.head[1])}});
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!rows.exists[r]) continue;
      const int64_t row = first_row + rows.query[r];
      if (exchange.rank == 0 && lane % 4 == 0) store.lse(piece.batch, row, rows.head[r], results.lse[r]);
      Element *const to = store.place(piece.batch, row, rows.head[r]);
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const int col = static_cast<int>(exchange.rank) * Exchange::kColumns + 8 * j + 2 * (lane % 4);
        if (col >= store.args.head_dim_v) continue;
        float2 both = columns_of(exchange.rank, r, j);
        both = {both.x * own_weight[r], both.y * own_weight[r]};
#pragma unroll
        for (int i = 0; i < kOthers; ++i) {
          const float2 other = reinterpret_cast<const float2 *>(place(i, r, j))[j % 2];
          both = {fmaf(other.x, weights[r][i], both.x), fmaf(other.y, weights[r][i], both.y)};
        }
        store.two(to + col, results.empty[r], results.factor[r], both.x, both.y);
      }
    }
  }

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
      const int first_col = static_cast<int>(exchange.rank_of(to)) * Exchange::kColumns;
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
      const float top = exchange.top_of_all(row, of_row.top);
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
