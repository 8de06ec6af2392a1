// What the kernel of latent attention reads and writes by rows: Q, and the results of a piece.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/mla_traits.cuh"
#include "device/ptx.cuh"
#include "device/softmax.cuh"
#include "device/split_args.h"
#include "device/split_consumer.cuh"

namespace flash3::device {

// The rows of this thread block. What lies behind them in shared memory may be anything: a row of a product depends
// on nothing but its own row of Q.
template <class Traits>
__device__ __forceinline__ void load_mla_q(const SplitArgs &args, const core::SplitSchedule &schedule,
                                           typename Traits::SharedStorage &smem, const MlaCluster &cluster,
                                           const core::SplitPiece &piece, const core::SeqSpan &q_span) {
  using Element = typename Traits::Element;
  ptx::bar_sync(kMlaAll, Traits::kConsumerThreads);  // the products of the piece before have read theirs
  constexpr int kThreadsPerRow = Traits::kConsumerThreads / Traits::kBlockM;
  const int row = threadIdx.x / kThreadsPerRow;
  const int32_t in_tile = cluster.rank * Traits::kBlockM + row;
  if (in_tile < schedule.tile_rows(piece.lengths, piece.m_block)) {
    const int64_t packed = int64_t{piece.m_block} * schedule.block_m + in_tile;
    const int32_t query = schedule.query(packed);
    const auto in_group = static_cast<int32_t>(packed - int64_t{query} * schedule.group.divisor);
    const auto *const from = row_of<Element>(args.q, piece.batch, q_span.start + query,
                                             int64_t{piece.kv_head} * schedule.group.divisor + in_group);
    const uint32_t to = ptx::shared_address(smem.q);
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 8 / kThreadsPerRow; ++i) {
      const int col = 8 * (i * kThreadsPerRow + threadIdx.x % kThreadsPerRow);
      ptx::cp_async_16(to + Traits::offset(row, col), from + col, 16);
    }
  }
  ptx::cp_async_wait_all();
  ptx::fence_proxy_async_shared();
  ptx::bar_sync(kMlaAll, Traits::kConsumerThreads);
}

// number: of the piece among the partial results.
template <class Traits, int kGroup>
__device__ __forceinline__ void store_mla(const SplitArgs &args, const core::SplitSchedule &schedule,
                                          const core::SplitPiece &piece, int32_t number, const core::SeqSpan &q_span,
                                          const PackedRows &rows, const OnlineSoftmax &softmax,
                                          const float (&o)[Traits::kHalfCols / 2]) {
  using Element = typename Traits::Element;
  constexpr int kOutputs = Traits::kHalfCols / 2;
  const int lane = threadIdx.x % 32;
  OnlineSoftmax::Sinks sinks = {{-INFINITY, -INFINITY}};
  if (args.sinks != nullptr && piece.whole) sinks = {{args.sinks[rows.head[0]], args.sinks[rows.head[1]]}};
  const RowResults results = softmax.finish(sinks);
  const Partials &partials = args.partials;
  const int col = kGroup * Traits::kHalfCols + 2 * (lane % 4);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (!rows.exists[r]) continue;
    const int64_t row = q_span.start + rows.query[r];  // of out
    if (piece.whole) {
      auto *const to = const_cast<Element *>(row_of<Element>(args.out, piece.batch, row, rows.head[r])) + col;
      if (kGroup == 0 && args.lse != nullptr && lane % 4 == 0) {
        args.lse[piece.batch * args.lse_batch_stride + rows.head[r] * args.lse_head_stride + row] = results.lse[r];
      }
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
        const uint32_t two =
            pack2<Element>(o[4 * j + 2 * r] * results.factor[r], o[4 * j + 2 * r + 1] * results.factor[r]);
        *reinterpret_cast<uint32_t *>(to + 8 * j) = results.empty[r] ? 0u : two;
      }
    } else {
      const int64_t query = args.packed_q ? row : int64_t{piece.batch} * args.seqlen_q + row;
      const int64_t at = partials.row(schedule, number, rows.index(r), query, rows.head[r]);
      if (kGroup == 0 && lane % 4 == 0) partials.lse[at] = results.lse[r];
      if (results.empty[r]) continue;  // nobody reads it
      float *const to = partials.out + at * args.head_dim_v + col;
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
        *reinterpret_cast<float2 *>(to + 8 * j) =
            make_float2(o[4 * j + 2 * r] * results.factor[r], o[4 * j + 2 * r + 1] * results.factor[r]);
      }
    }
  }
}

}  // namespace flash3::device
