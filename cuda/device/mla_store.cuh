// The results of a piece of the kernel of latent attention.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/mla_traits.cuh"
#include "device/softmax.cuh"
#include "device/split_args.h"
#include "device/split_consumer.cuh"

namespace flash3::device {

// number: of the piece among the partial results.
template <class Traits, int kGroup>
__device__ __forceinline__ void store_mla(const SplitArgs &args, const core::SplitSchedule &schedule,
                                          const core::SplitPiece &piece, int32_t number, int32_t q_start,
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
    const int64_t row = int64_t{q_start} + rows.query[r];  // of out
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
