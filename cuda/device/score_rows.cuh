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

// Of a thread's two rows.
struct RowResults {
  RowLse lse[2];
  float factor[2];  // turns the accumulated output into the result
  bool empty[2];    // no key was visible: the result is 0 whatever was accumulated, NaN included
};

}  // namespace flash3::device
