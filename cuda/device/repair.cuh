// Keeps NaN and Inf of invisible V rows out of a row's result.
//
// The tensor cores multiply the zero probabilities of masked keys, too, and 0 * NaN is NaN. That can only happen under
// a causal mask or a window (behind the end of a sequence TMA fills in zeros), and it always leaves a trace: a result
// that is not finite. If the invisible keys of the row's key blocks may be to blame, which is rare, the row is computed
// again from the keys that it sees.
//
// By one whole warp, where its rows have been put down, and from nothing but the tile: what is kept for it takes
// registers from the main loop. The rows of a warp share the look at keys that some of them do not see: whoever has NaN
// in a tensor waits for that in every tile.
#pragma once

#include <cstdint>

#include "core/mask.h"
#include "device/fwd_args.h"
#include "device/key_rows.cuh"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/tile_rows.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct Repair {
  using Element = typename Traits::Element;
  static constexpr int kOutputs = Traits::kHeadDimV / 2;
  // Lanes that have the columns of a row of V, eight each, and rows that all lanes have.
  static constexpr int kLanesOfRow = Traits::kHeadDimV <= 64 ? 8 : Traits::kHeadDimV <= 128 ? 16 : 32;
  static constexpr int kSideBySide = 32 / kLanesOfRow;
  static_assert(Traits::kHeadDimV <= 8 * kLanesOfRow, "a warp has all columns");

  const FwdArgs &args;
  const WorkTile &tile;
  const int64_t first_row;  // of the warp, in the sequence
  const int lane = ptx::lane();

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

  // `result`: of the warp's 16 rows get(row, col), two columns that other lanes may have written, put(row, eight, col,
  // float2), where col is counted from the first one of an eight, and sink_log2(row).
  template <class Result>
  __device__ __forceinline__ void run(const Result &result) const {
    __syncwarp();
    const auto rows = static_cast<int>(min(TileRows<Traits>{args}.count(tile.seqlen_q) - first_row, int64_t{16}));
    uint32_t suspects = 0;  // a bit a row
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      float trace = 0.f;
#pragma unroll 1
      for (int col = 2 * lane; col < Traits::kHeadDimV && Traits::first_column() + col < args.head_dim_v; col += 64) {
        const float2 x = result.get(row, col);
        trace = fmaf(x.x, 0.f, fmaf(x.y, 0.f, trace));
      }
      if (__any_sync(0xffffffffu, trace != trace)) suspects |= 1u << row;
    }
    if (suspects == 0) return;
    const uint32_t poisoned = suspects & rows_with_bad_neighbours(rows);
#pragma unroll 1
    for (uint32_t rest = poisoned; rest != 0; rest &= rest - 1) recompute(__ffs(static_cast<int>(rest)) - 1, result);
  }

 private:
  struct Keys {
    int32_t begin, end;
  };

  // Those that took part in the products.
  __device__ __forceinline__ Keys loaded() const {
    return {tile.range.begin * Traits::kBlockN,
            static_cast<int32_t>(min(int64_t{tile.range.end} * Traits::kBlockN, int64_t{tile.seqlen_k}))};
  }

  // Those of them that a row of the warp sees; also behind the last row of the sequence.
  __device__ __forceinline__ Keys seen(int row) const {
    const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
    const auto query = static_cast<int32_t>(TileRows<Traits>{args}.query(first_row + row));
    const Keys all = loaded();
    return {max(mask.key_begin(query), all.begin), min(mask.key_end(query), all.end)};
  }

  __device__ __forceinline__ KeyRows<Traits> key_rows(const TensorRows &of) const {
    return {args, of, tile, KeyRows<Traits>::start(args, tile, 0, 0), tile.head / args.group};
  }

  // A bit for each of the warp's rows: whether there are V rows that are not finite among the keys that took part and
  // that it does not see. Those are in front of what the last row sees, and behind what the first one does.
  __device__ __forceinline__ uint32_t rows_with_bad_neighbours(int rows) const {
    const Keys all = loaded();
    const Keys own = seen(min(lane, rows - 1));
    const Keys by_all = {__reduce_max_sync(0xffffffffu, own.begin), __reduce_min_sync(0xffffffffu, own.end)};
    const KeyRows<Traits> v_rows = key_rows(args.v);
    int32_t first_bad = INT32_MAX, last_bad = -1;
#pragma unroll 1
    for (int behind = 0; behind < 2; ++behind) {
      // Counted without a sign: the last key may be almost 2^31.
      const uint32_t end = behind == 0 ? min(by_all.begin, all.end) : all.end;
      const uint32_t begin = behind == 0 ? all.begin : max(by_all.end, all.begin);
#pragma unroll 1
      for (uint32_t key = begin + lane; key < end; key += 32) {
        if (finite(v_rows.at(key))) continue;
        first_bad = min(first_bad, static_cast<int32_t>(key));
        last_bad = max(last_bad, static_cast<int32_t>(key));
      }
    }
    first_bad = __reduce_min_sync(0xffffffffu, first_bad);
    last_bad = __reduce_max_sync(0xffffffffu, last_bad);
    return __ballot_sync(0xffffffffu, first_bad < own.begin || last_bad >= own.end);
  }

  // A lane has one of 32 keys for its score, and then eight columns of every kSideBySide-th of them.
  template <class Result>
  __device__ __forceinline__ void recompute(int row_of_warp, const Result &result) const {
    const Keys own = seen(row_of_warp);
    const KeyRows<Traits> k_rows = key_rows(args.k), v_rows = key_rows(args.v);
    const int col = lane % kLanesOfRow * 8;
    const bool has_columns = col < Traits::kHeadDimV && Traits::first_column() + col < args.head_dim_v;
    float top = result.sink_log2(row_of_warp);              // the largest score so far, in units of log2
    float sum = top == -INFINITY || lane != 0 ? 0.f : 1.f;  // the lane's share
    float o[8] = {};                                        // likewise
#pragma unroll 1
    for (int32_t end = own.end; end > own.begin; end -= 32) {
      const int32_t key = end - 1 - lane;
      const float score = key < own.begin ? -INFINITY : score_of(row_of_warp, k_rows.at(key), key);
      const float now = fmaxf(top, warp_max(score));  // NaN counts as little where there are others
      const float reference = now == -INFINITY ? 0.f : now;
      const float keep = top == reference ? 1.f : ptx::ex2(top - reference);  // 1 also where a sink of +inf is the top
      const float p = ptx::ex2(score - reference);
      top = now;
      sum = fmaf(sum, keep, p);
#pragma unroll
      for (int i = 0; i < 8; ++i) o[i] *= keep;
#pragma unroll 1
      for (int of = 0; of < 32; of += kSideBySide) {
        float weight = 0.f;
#pragma unroll 1
        for (int i = 0; i < kSideBySide; ++i) {
          const float x = of_lane(p, of + i);
          if (lane / kLanesOfRow == i) weight = x;
        }
        const int32_t key_of_row = end - 1 - of - lane / kLanesOfRow;
        if (key_of_row < own.begin || !has_columns) continue;
        const uint4 v = *reinterpret_cast<const uint4 *>(v_rows.at(key_of_row) + Traits::first_column() + col);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          o[i] = fmaf(weight, static_cast<float>(reinterpret_cast<const Element *>(&v)[i]), o[i]);
        }
      }
      bool all_nan = true;
#pragma unroll
      for (int i = 0; i < 8; ++i) all_nan = all_nan && o[i] != o[i];
      if (__all_sync(0xffffffffu, all_nan || !has_columns)) break;  // nothing can change any more
    }
    const float factor = ptx::rcp(warp_sum(sum));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int lanes = kLanesOfRow; lanes < 32; lanes *= 2) o[i] += __shfl_xor_sync(0xffffffffu, o[i], lanes);
    }
    if (!has_columns || lane >= kLanesOfRow) return;
#pragma unroll
    for (int i = 0; i < 8; i += 2) result.put(row_of_warp, col, i, make_float2(o[i] * factor, o[i + 1] * factor));
  }

  // By a reduction: a shuffle from a place that is computed, in a function that is called, takes registers from the
  // kernel that calls it.
  __device__ __forceinline__ float of_lane(float x, int other) const {
    return __uint_as_float(__reduce_or_sync(0xffffffffu, lane == other ? __float_as_uint(x) : 0));
  }

  // In units of log2.
  __device__ __forceinline__ float score_of(int row_of_warp, const Element *k, int32_t key) const {
    const TileRows<Traits> tile_rows{args};
    const int64_t row = first_row + row_of_warp;
    const Element *q = tile_rows.q(tile, row);
    float product = 0.f;
#pragma unroll 1
    for (int col = 0; col < args.head_dim; col += 8) {
      const uint4 of_q = *reinterpret_cast<const uint4 *>(q + col);
      const uint4 of_k = *reinterpret_cast<const uint4 *>(k + col);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        product = fmaf(static_cast<float>(reinterpret_cast<const Element *>(&of_q)[i]),
                       static_cast<float>(reinterpret_cast<const Element *>(&of_k)[i]), product);
      }
    }
    if constexpr (!Traits::kScoreMod) return product * args.scale_log2;
    const int64_t diagonal = core::Mask{args.window, tile.seqlen_q, tile.seqlen_k}.diagonal(tile_rows.query(row));
    return modified_score(product, args, alibi_slope(args, tile), diagonal - key);
  }

  static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll 1
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
  }
  static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll 1
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
  }

  // Whether a row of V is.
  __device__ __forceinline__ bool finite(const Element *v) const {
    bool all = true;
#pragma unroll 1
    for (int col = 0; col < args.head_dim_v; col += 8) {
      all = all && all_finite<Element>(*reinterpret_cast<const uint4 *>(v + col));
    }
    return all;
  }
};

}  // namespace flash3::device
