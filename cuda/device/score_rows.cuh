// Rows of scores, which four threads share (see OnlineSoftmax), and what the softmax of a row leaves beside the
// weighted sum of V.
#pragma once

#include "core/constants.h"
#include "device/ptx.cuh"

namespace flash3::device {

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The sum of a row's values among a thread's.
template <int kS>
__device__ __forceinline__ float sum_of_row(const float (&s)[kS], int r) {
  float part[2] = {0.f, 0.f};
#pragma unroll
  for (int j = 0; j < kS / 4; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) part[c] += s[4 * j + 2 * r + c];
  }
  return part[0] + part[1];
}

// The log-sum-exp of a row, not yet computed: the natural logarithm of total * 2^top; or, where no key was visible and
// the total is kNone, that of a sink, which `top` is then.
struct RowLse {
  static constexpr float kNone = -1.f;
  float top, total;

  __device__ __forceinline__ float value() const { return total < 0.f ? top : (top + ptx::lg2(total)) * core::kLn2; }
};

struct RowResult {
  RowLse lse;
  float factor;  // turns the accumulated output into the result
  bool empty;    // no key was visible: the result is 0 whatever was accumulated, NaN included
};

// From the sum of a row's exponentials relative to its reference, in units of log2, and a sink, which is one more logit
// without a value; -inf: none.
__device__ __forceinline__ RowResult finish_row(float reference, float sum, float sink) {
  const float sink_log2 = sink * core::kLog2e;
  const float top = fmaxf(reference, sink_log2);
  const float keep = ptx::ex2(reference - top);
  // A sink of +inf leaves nothing to the keys, but is no NaN.
  const float total = sum * keep + (sink_log2 == top ? 1.f : ptx::ex2(sink_log2 - top));
  // The first visible score gave the row its reference.
  const bool empty = sum == 0.f && reference == -INFINITY;
  // The approximations of the hardware do: total is at least 1, as the term of the reference is, or the sink. (Or
  // little less, where a row is relative to 0: see core::MonicSoftcap.)
  const RowLse lse = empty ? RowLse{sink, RowLse::kNone} : RowLse{top, total};
  return {lse, keep * ptx::rcp(total), empty};
}

// Of a thread's two rows.
struct RowResults {
  RowLse lse[2];
  float factor[2];  // turns the accumulated output into the result
  bool empty[2];    // no key was visible: the result is 0 whatever was accumulated, NaN included
};

}  // namespace flash3::device
