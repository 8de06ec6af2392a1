// How the consumer warps of SplitWarpConsumer add up what each of them has computed from its keys: through shared
// memory, once for every piece.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "core/split_config.h"
#include "device/ptx.cuh"
#include "device/score_rows.cuh"

namespace flash3::device {

// A thread's part in the softmax of a warp's keys: its scores and outputs are those of rows 2 * (lane % 4) and the next
// one.
struct RowPair {
  float reference[2] = {-INFINITY, -INFINITY};  // as in OnlineSoftmax
  float sum[2] = {0.f, 0.f};                    // this thread's share
};

template <class Traits>
struct WarpSums {
  static constexpr int kRows = core::kWarpRows;
  static constexpr int kWarps = Traits::kConsumerThreads / 32;
  static constexpr int kSteps = Traits::kHeadDim / 16;  // of columns

  typename Traits::SharedStorage &smem;

  // A warp's results for `rows` rows. Output o[t][i] is that of column 16 * t + i / 2 * 8 + lane / 4 and the thread's
  // row i % 2.
  __device__ __forceinline__ void put(int32_t rows, const RowPair &state, const float (&o)[kSteps][4]) const {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[r];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      const int row = lane % 4 * 2 + r;
      if (lane < 4) smem.warp_rows[warp][row] = make_float2(state.reference[r], sum);
      if (row >= rows) continue;
      // Places of the first two steps; those of the others are at constant distances.
      float *const to[4] = {place(warp, row, lane / 4), place(warp, row, lane / 4 + 8), place(warp, row, lane / 4 + 16),
                            place(warp, row, lane / 4 + 24)};
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        const int col = t / 2 * 32;
        const int distance = col / Traits::kBoxCols * kFloatsOfColumnBlock + col % Traits::kBoxCols;
#pragma unroll
        for (int i = 0; i < 2; ++i) to[t % 2 * 2 + i][distance] = o[t][2 * i + r];
      }
    }
  }

  // The sum over warps of a row's outputs, and of its exponentials with those of a sink (-inf: none); see RowLse.
  __device__ __forceinline__ RowLse add_up(int row, int col, float sink, float4 *out) const {
    float2 state[kWarps];
    float4 x[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      state[w] = smem.warp_rows[w][row];
      x[w] = *reinterpret_cast<const float4 *>(place(w, row, col));
    }
    const float sink_log2 = sink * core::kLog2e;
    float reference = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) reference = fmaxf(reference, state[w].x);
    const float top = fmaxf(reference, sink_log2);
    float total = 0.f;
    float4 sum = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = state[w].x == -INFINITY ? 0.f : ptx::ex2(state[w].x - top);
      total = fmaf(weight, state[w].y, total);
      sum.x = fmaf(weight, x[w].x, sum.x);
      sum.y = fmaf(weight, x[w].y, sum.y);
      sum.z = fmaf(weight, x[w].z, sum.z);
      sum.w = fmaf(weight, x[w].w, sum.w);
    }
    *out = sum;
    if (total == 0.f && reference == -INFINITY) return {sink, RowLse::kNone};
    // A sink of +inf leaves nothing to the keys, but is no NaN.
    if (sink != -INFINITY) total += sink_log2 == top ? 1.f : ptx::ex2(sink_log2 - top);
    return {top, total};
  }

  // Where a row comes to lie of which another block of a cluster sends some columns, behind all that. All blocks have
  // as many rows there as a product has.
  template <int kColumns>
  __device__ __forceinline__ float *place_of_other(int block, int row, int col) const {
    constexpr int kFree = kFloatsOfColumnBlock - kFloatsUsed;
    const int at = (block * kRows + row) * kColumns + col;
    return reinterpret_cast<float *>(smem.q[0]) + at / kFree * kFloatsOfColumnBlock + kFloatsUsed + at % kFree;
  }

 private:
  // Where a warp's output lies for the others: behind the rows of Q in their buffers, two warps in each.
  static constexpr int kFloatsOfColumnBlock = Traits::kBlockM * Traits::kBoxCols / 2;  // of a buffer
  static constexpr int kFloatsOfQ = kRows * Traits::kBoxCols / 2;                      // of those
  static constexpr int kFloatsUsed = kFloatsOfQ + kWarps / 2 * kRows * Traits::kBoxCols;
  static_assert(kFloatsUsed + kRows * Traits::kBoxCols <= kFloatsOfColumnBlock, "there is room, for other blocks, too");
  __device__ __forceinline__ float *place(int of_warp, int row, int col) const {
    auto *const buffer = reinterpret_cast<float *>(smem.q[of_warp / 2]);
    const int at_row = kFloatsOfQ + (of_warp % 2 * kRows + row) * Traits::kBoxCols;
    // Rows that threads of a warp store at the same time are in other banks.
    return buffer + col / Traits::kBoxCols * kFloatsOfColumnBlock + at_row + ((col % Traits::kBoxCols) ^ (row / 2 * 8));
  }
};

}  // namespace flash3::device
