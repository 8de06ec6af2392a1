// Keeps NaN and Inf of invisible V rows out of a row's result.
//
// The tensor cores multiply the zero probabilities of masked keys, too, and 0 * NaN is NaN. That can only happen under
// a causal mask or a window (behind the end of a sequence TMA fills in zeros), and it always leaves a trace: a result
// that is not finite in a row whose log-sum-exp is. If the invisible keys of the row's key blocks are to blame, which
// is rare, the row is computed again, one visible key after the other.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/key_rows.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/tile_rows.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// <q, k> over `cols` columns, a multiple of 8, shared out among the four lanes of a quad.
template <class Element>
__device__ __forceinline__ float quad_dot(const Element *q, const Element *k, int cols, int lane) {
  float sum = 0.f;
  for (int c = 8 * (lane % 4); c < cols; c += 32) {
    for (int i = 0; i < 8; ++i) sum = fmaf(static_cast<float>(q[c + i]), static_cast<float>(k[c + i]), sum);
  }
  const uint32_t quad = 0xfu << (lane / 4 * 4);
  sum += __shfl_xor_sync(quad, sum, 1);
  return sum + __shfl_xor_sync(quad, sum, 2);
}

template <class Traits>
struct Repair {
  using Element = typename Traits::Element;
  static constexpr int kOutputs = Traits::kHeadDimV / 2;

  const FwdArgs &args;
  const WorkTile &tile;
  const int64_t first_row;  // of the warp, in the sequence

  // Whether a row of the warp may have to be computed again, from its output before the normalisation. A V row that is
  // not finite shows in its column in every row that took part in the product, so one row of the two will do.
  __device__ __forceinline__ bool suspect(const float (&o)[kOutputs]) const {
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

  // o holds the final output of the thread's two rows, of_row their log-sum-exp.
  __device__ __forceinline__ void run(float (&o)[kOutputs], const RowLse (&of_row)[2]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = first_row + lane / 4 + 8 * r;
      float trace[4] = {0.f, 0.f, 0.f, 0.f};  // becomes NaN with the first value that is not finite
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) trace[j % 2 * 2 + c] = fmaf(o[4 * j + 2 * r + c], 0.f, trace[j % 2 * 2 + c]);
      }
      const float sum = (trace[0] + trace[1]) + (trace[2] + trace[3]);
      const float lse = of_row[r].value();
      const bool bad = sum != sum && isfinite(lse) && row < TileRows<Traits>{args}.count(tile.seqlen_q);
      const uint32_t lanes = __ballot_sync(0xffffffffu, bad);
      if ((lanes >> (lane / 4 * 4) & 0xfu) != 0) recompute(o, r, row, lse);
      __syncwarp();
    }
  }

 private:
  // Columns of this thread: first_column() + 8 * j + 2 * (lane % 4) and the one behind it, for every j.
  __device__ __forceinline__ void recompute(float (&o)[kOutputs], int r, int64_t row, float lse) const {
    const TileRows<Traits> tile_rows{args};
    const RowScores rows(args, tile, first_row, alibi_slope(args, tile), [&](int64_t x) { return tile_rows.query(x); });
    const int lane = rows.lane;
    const uint32_t quad = 0xfu << (lane / 4 * 4);
    const int32_t kv_head = tile.head / args.group;
    const auto k_start = KeyRows<Traits>::start(args, tile, 0, 0);
    const KeyRows<Traits> k_rows(args, args.k, tile, k_start, kv_head);
    const KeyRows<Traits> v_rows(args, args.v, tile, k_start, kv_head);
    int32_t begin = rows.key_begin[r];
    int32_t end = rows.key_end[r];
    if constexpr (Traits::kPieces) {  // of the keys of the piece
      begin = max(begin, tile.range.begin * Traits::kBlockN);
      end = static_cast<int32_t>(min(int64_t{end}, int64_t{tile.range.end} * Traits::kBlockN));
    }
    const int64_t loaded_end = min(int64_t{tile.range.end} * Traits::kBlockN, int64_t{tile.seqlen_k});
    const bool poisoned =
        !finite(v_rows, tile.range.begin * Traits::kBlockN, begin, lane) || !finite(v_rows, end, loaded_end, lane);
    if (!__any_sync(quad, poisoned)) return;

    const Element *q = tile_rows.q(tile, row);
#pragma unroll
    for (int j = 0; j < kOutputs / 4; ++j) o[4 * j + 2 * r] = o[4 * j + 2 * r + 1] = 0.f;
    for (int32_t key = end - 1; key >= begin; --key) {
      const float dot = quad_dot(q, k_rows.at(key), args.head_dim, lane);
      const float p = ptx::ex2(rows.modified(dot, args, r, rows.diagonal[r] - key) - lse * kLog2e);
      const Element *v = v_rows.at(key);
      bool all_nan = true;
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
        const int col = Traits::first_column() + 8 * j + 2 * (lane % 4);
        if (col < args.head_dim_v) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float &x = o[4 * j + 2 * r + c];
            x = fmaf(p, static_cast<float>(v[col + c]), x);
            all_nan = all_nan && x != x;
          }
        }
      }
      if (__all_sync(quad, all_nan)) return;  // nothing can change any more
    }
  }

  // Whether this thread's columns of V are finite for keys [from, to).
  __device__ __forceinline__ bool finite(const KeyRows<Traits> &v_rows, int64_t from, int64_t to, int lane) const {
    float trace = 0.f;
    for (int64_t key = from; key < to; ++key) {
      for (int col = 2 * (lane % 4); col < args.head_dim_v; col += 8) {
        trace = fmaf(static_cast<float>(v_rows.at(key, col)), 0.f, trace);
        trace = fmaf(static_cast<float>(v_rows.at(key, col + 1)), 0.f, trace);
      }
    }
    return trace == trace;
  }
};

}  // namespace flash3::device
