// The results of a piece of the kernel of latent attention.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/mla_traits.cuh"
#include "device/pack.cuh"
#include "device/packed_rows.cuh"
#include "device/softmax.cuh"
#include "device/split_args.h"

namespace flash3::device {

// Lane q of four gets the q-th of all four lanes' values.
__device__ __forceinline__ uint4 quad_transpose(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
  const bool high = threadIdx.x % 4 >= 2;
  // Of the values 0 and 2, or 1 and 3, those of this lane and its neighbour.
  const uint32_t first = __shfl_xor_sync(0xffffffffu, odd ? x[0] : x[1], 1);
  const uint32_t second = __shfl_xor_sync(0xffffffffu, odd ? x[2] : x[3], 1);
  const uint32_t low[2] = {odd ? first : x[0], odd ? x[1] : first};
  const uint32_t top[2] = {odd ? second : x[2], odd ? x[3] : second};
  const uint32_t other[2] = {__shfl_xor_sync(0xffffffffu, high ? low[0] : top[0], 2),
                             __shfl_xor_sync(0xffffffffu, high ? low[1] : top[1], 2)};
  return high ? make_uint4(other[0], other[1], top[0], top[1]) : make_uint4(low[0], low[1], other[0], other[1]);
}

// The results of a warpgroup's columns. The lanes of a quad exchange theirs, so that each has 16 bytes to store.
template <class Traits>
struct MlaStore {
  using Element = typename Traits::Element;
  static constexpr int kOutputs = Traits::kHalfCols / 2;

  const float (&o)[kOutputs];
  const RowResults &results;
  const int quad_lane = threadIdx.x % 4;

  __device__ __forceinline__ uint32_t two(int r, int j) const {
    const uint32_t x = pack2<Element>(o[4 * j + 2 * r] * results.factor[r], o[4 * j + 2 * r + 1] * results.factor[r]);
    return results.empty[r] ? 0u : x;
  }

  // Collective over the warp. to: the first column.
  __device__ __forceinline__ void whole(int r, Element *to, bool exists) const {
#pragma unroll
    for (int j = 0; j < kOutputs / 4; j += 4) {
      uint32_t own[4] = {two(r, j), two(r, j + 1), two(r, j + 2), two(r, j + 3)};
      const uint4 value = quad_transpose(own);
      if (exists) *reinterpret_cast<uint4 *>(to + 8 * (j + quad_lane)) = value;
    }
  }

  __device__ __forceinline__ void partial(int r, float *to, bool exists) const {
    const bool odd = quad_lane % 2 != 0;
#pragma unroll
    for (int j = 0; j < kOutputs / 4; j += 2) {
      float own[2][2], other[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        own[0][c] = o[4 * j + 2 * r + c] * results.factor[r];
        own[1][c] = o[4 * j + 4 + 2 * r + c] * results.factor[r];
        other[c] = __shfl_xor_sync(0xffffffffu, odd ? own[0][c] : own[1][c], 1);
      }
      const float4 value = odd ? make_float4(other[0], other[1], own[1][0], own[1][1])
                               : make_float4(own[0][0], own[0][1], other[0], other[1]);
      if (exists) *reinterpret_cast<float4 *>(to + 8 * (j + odd) + quad_lane / 2 * 4) = value;
    }
  }
};

// number: of the piece among the partial results.
template <class Traits, int kGroup>
__device__ __forceinline__ void store_mla(const SplitArgs &args, const core::SplitSchedule &schedule,
                                          const core::SplitPiece &piece, int32_t number, int32_t q_start,
                                          const PackedRows &rows, const OnlineSoftmax &softmax,
                                          const float (&o)[Traits::kHalfCols / 2]) {
  using Element = typename Traits::Element;
  const bool first_lane = threadIdx.x % 4 == 0;
  OnlineSoftmax::Sinks sinks = {{-INFINITY, -INFINITY}};
  if (args.sinks != nullptr && piece.whole) sinks = {{args.sinks[rows.head[0]], args.sinks[rows.head[1]]}};
  const RowResults results = softmax.finish(sinks);
  const MlaStore<Traits> store{o, results};
  const Partials &partials = args.partials;
  constexpr int kCol = kGroup * Traits::kHalfCols;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = int64_t{q_start} + rows.query[r];  // of out
    if (piece.whole) {
      auto *const to = const_cast<Element *>(row_of<Element>(args.out, piece.batch, row, rows.head[r]));
      store.whole(r, to + kCol, rows.exists[r]);
      if (kGroup == 0 && args.lse != nullptr && first_lane && rows.exists[r]) {
        args.lse[piece.batch * args.lse_batch_stride + rows.head[r] * args.lse_head_stride + row] =
            results.lse[r].value();
      }
    } else {
      const int64_t query = args.packed_q ? row : int64_t{piece.batch} * args.seqlen_q + row;
      const int64_t at = partials.row(schedule, number, rows.index(r), query, rows.head[r]);
      // Nobody reads what belongs to a row that has seen no key.
      store.partial(r, partials.out + at * args.head_dim_v + kCol, rows.exists[r] && !results.empty[r]);
      if (kGroup == 0 && first_lane && rows.exists[r]) partials.lse[at] = results.lse[r].value();
    }
  }
}

}  // namespace flash3::device
