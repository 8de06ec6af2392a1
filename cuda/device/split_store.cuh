// Final results of the split-KV kernel on their way to memory.
#pragma once

#include <cstdint>

#include "core/split_pieces.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/score_rows.cuh"
#include "device/split_args.h"

namespace flash3::device {

template <class Traits>
struct SplitStore {
  using Element = typename Traits::Element;

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  const ptx::L2Hint hint;

  // The query head of a row of a tile that is the only one of its sequence and KV head.
  __device__ __forceinline__ int32_t head_of(const core::SplitPiece &piece, int row) const {
    const int32_t group = schedule.group.divisor;
    return row - schedule.query(row) * group + piece.kv_head * group;
  }
  __device__ __forceinline__ float sink_of(int32_t head) const {
    return args.sinks != nullptr ? args.sinks[head] : -INFINITY;
  }

  // row: of out.
  __device__ __forceinline__ void lse(int32_t batch, int64_t row, int32_t head, const RowLse &of_row) const {
    if (args.lse == nullptr) return;
    ptx::store(args.lse + batch * args.lse_batch_stride + head * args.lse_head_stride + row,
               __float_as_uint(of_row.value()), hint);
  }
  __device__ __forceinline__ Element *place(int32_t batch, int64_t row, int32_t head) const {
    return const_cast<Element *>(row_of<Element>(args.out, batch, row, head));
  }

  // Two columns of a row, from what was accumulated of them.
  __device__ __forceinline__ void two(Element *to, bool empty, float factor, float x, float y) const {
    ptx::store(to, empty ? 0u : pack2<Element>(x * factor, y * factor), hint);
  }

  // Four columns of a row of such a tile.
  __device__ __forceinline__ void four(const core::SplitPiece &piece, int64_t first_row, int row, int32_t head, int col,
                                       const RowResult &result, const float4 &sum) const {
    const int64_t out_row = first_row + schedule.query(row);
    if (col == 0) lse(piece.batch, out_row, head, result.lse);
    if (col >= args.head_dim_v) return;
    auto *const to = place(piece.batch, out_row, head) + col;
    two(to, result.empty, result.factor, sum.x, sum.y);
    two(to + 2, result.empty, result.factor, sum.z, sum.w);
  }
};

}  // namespace flash3::device
