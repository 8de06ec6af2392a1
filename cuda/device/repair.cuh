// Keeps NaN and Inf of invisible V rows out of a row's result.
//
// The tensor cores multiply the zero probabilities of masked keys, too, and 0 * NaN is NaN. That can only happen under
// a causal mask or a window (behind the end of a sequence TMA fills in zeros), and it always leaves a trace: a result
// that is not finite. If the invisible keys of the row's key blocks may be to blame, which is rare, the row is computed
// again, one visible key after the other.
//
// By one whole warp, where its rows have been put down, and from nothing but the tile: what is kept for it takes
// registers from the main loop. In loops that are not unrolled: a call waits longer the more code there is.
#pragma once

#include <cstdint>

#include "core/mask.h"
#include "device/fwd_args.h"
#include "device/key_rows.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/tile_rows.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// <q, k> over `cols` columns, an even number, shared out in pairs among the lanes of a warp.
template <class Element>
__device__ __forceinline__ float warp_dot(const Element *q, const Element *k, int cols, int lane) {
  float sum = 0.f;
#pragma unroll 1
  for (int c = 2 * lane; c < cols; c += 64) {
    sum = fmaf(static_cast<float>(q[c]), static_cast<float>(k[c]), sum);
    sum = fmaf(static_cast<float>(q[c + 1]), static_cast<float>(k[c + 1]), sum);
  }
#pragma unroll 1
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  return sum;
}

template <class Traits>
struct Repair {
  using Element = typename Traits::Element;
  static constexpr int kOutputs = Traits::kHeadDimV / 2;
  static constexpr int kPairs = (Traits::kHeadDimV + 63) / 64;  // columns that a lane has of a row

  const FwdArgs &args;
  const WorkTile &tile;
  const int64_t first_row;  // of the warp, in the sequence

  // Whether a row of the warp may have to be computed again, from its output before the normalisation. A V row that is
  // not finite shows in its column in every row that took part in the product, so one row of the two will do.
  static __device__ __forceinline__ bool suspects(const FwdArgs &args, const float (&o)[kOutputs]) {
    if (!args.window.limited()) return false;
    float trace[4] = {0.f, 0.f, 0.f, 0.f};  // becomes NaN with the first value that is not finite
#pragma unroll
    for (int j = 0; j < kOutputs / 4; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) trace[j % 2 * 2 + c] = fmaf(o[4 * j + c], 0.f, trace[j % 2 * 2 + c]);
    }
    const float sum = (trace[0] + trace[1]) + (trace[2] + trace[3]);
    return __any_sync(0xffffffffu, sum != sum);
  }

  // `result`: get(row, col) and put(row, col, float2) of the warp's 16 rows, two columns each, which other lanes may
  // have written, and sink_log2(row).
  template <class Result>
  __device__ __forceinline__ void run(const Result &result) const {
    __syncwarp();
    const int lane = ptx::lane();
    const int64_t rows = TileRows<Traits>{args}.count(tile.seqlen_q) - first_row;
#pragma unroll 1
    for (int row = 0; row < 16 && row < rows; ++row) {
      float trace = 0.f;
#pragma unroll 1
      for (int col = 2 * lane; col < Traits::kHeadDimV && Traits::first_column() + col < args.head_dim_v; col += 64) {
        const float2 x = result.get(row, col);
        trace = fmaf(x.x, 0.f, fmaf(x.y, 0.f, trace));
      }
      if (__any_sync(0xffffffffu, trace != trace)) recompute(row, lane, result);
    }
  }

 private:
  template <class Result>
  __device__ __forceinline__ void recompute(int row_of_warp, int lane, const Result &result) const {
    const TileRows<Traits> tile_rows{args};
    const int64_t row = first_row + row_of_warp;
    const int64_t query = tile_rows.query(row);
    const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
    int32_t begin = mask.key_begin(static_cast<int32_t>(query));
    int32_t end = mask.key_end(static_cast<int32_t>(query));
    if constexpr (Traits::kPieces) {  // of the keys of the piece
      begin = max(begin, tile.range.begin * Traits::kBlockN);
      end = static_cast<int32_t>(min(int64_t{end}, int64_t{tile.range.end} * Traits::kBlockN));
    }
    const int64_t loaded_end = min(int64_t{tile.range.end} * Traits::kBlockN, int64_t{tile.seqlen_k});
    const int32_t kv_head = tile.head / args.group;
    const auto k_start = KeyRows<Traits>::start(args, tile, 0, 0);
    const KeyRows<Traits> k_rows(args, args.k, tile, k_start, kv_head);
    const KeyRows<Traits> v_rows(args, args.v, tile, k_start, kv_head);
    bool poisoned = false;  // by a key that took part, and that the row does not see
#pragma unroll 1
    for (int64_t key = int64_t{tile.range.begin} * Traits::kBlockN; key < loaded_end; ++key) {
      if (key >= begin && key < end) {
        key = end - 1;
      } else {
        poisoned = poisoned || !finite(v_rows.at(key), lane);
      }
    }
    if (!__any_sync(0xffffffffu, poisoned)) return;

    const Element *q = tile_rows.q(tile, row);
    const float slope = Traits::kScoreMod ? alibi_slope(args, tile) : 0.f;
    float top = result.sink_log2(row_of_warp);  // the largest score so far, in units of log2
    float sum = top == -INFINITY ? 0.f : 1.f;   // of what the scores and the sink come to relative to it
    float2 o[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) o[i] = {0.f, 0.f};
#pragma unroll 1
    for (int32_t key = end - 1; key >= begin; --key) {
      const float product = warp_dot(q, k_rows.at(key), args.head_dim, lane);
      const float score = Traits::kScoreMod ? modified_score(product, args, slope, mask.diagonal(query) - key)
                                            : product * args.scale_log2;
      const float now = fmaxf(top, score);
      const float reference = now == -INFINITY ? 0.f : now;
      const float keep = top == reference ? 1.f : ptx::ex2(top - reference);  // 1 also where a sink of +inf is the top
      const float p = ptx::ex2(score - reference);
      top = now;
      sum = fmaf(sum, keep, p);
      const Element *v = v_rows.at(key);
      bool all_nan = true;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        if (!has(i, lane)) continue;
        o[i].x = fmaf(p, static_cast<float>(v[column(i, lane)]), o[i].x * keep);
        o[i].y = fmaf(p, static_cast<float>(v[column(i, lane) + 1]), o[i].y * keep);
        all_nan = all_nan && o[i].x != o[i].x && o[i].y != o[i].y;
      }
      if (__all_sync(0xffffffffu, all_nan)) break;  // nothing can change any more
    }
    const float factor = ptx::rcp(sum);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (has(i, lane)) result.put(row_of_warp, 64 * i + 2 * lane, make_float2(o[i].x * factor, o[i].y * factor));
    }
  }

  // Of this lane's pairs of columns: the first column of pair i, and whether there is such a pair.
  static __device__ __forceinline__ int column(int i, int lane) { return Traits::first_column() + 64 * i + 2 * lane; }
  __device__ __forceinline__ bool has(int i, int lane) const {
    return 64 * i + 2 * lane < Traits::kHeadDimV && column(i, lane) < args.head_dim_v;
  }

  // Whether this lane's columns of a row of V are.
  __device__ __forceinline__ bool finite(const Element *v, int lane) const {
    float trace = 0.f;
#pragma unroll 1
    for (int c = 2 * lane; c < args.head_dim_v; c += 64) {
      trace = fmaf(static_cast<float>(v[c]), 0.f, fmaf(static_cast<float>(v[c + 1]), 0.f, trace));
    }
    return trace == trace;
  }
};

}  // namespace flash3::device
