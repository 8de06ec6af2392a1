// Online softmax over a warpgroup's 64 x kN scores in the wgmma accumulator layout: each thread holds two rows (r = 0,
// 1, eight rows apart), and score s[4 * j + 2 * r + c] is column 8 * j + 2 * (lane % 4) + c of row r.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include "device/ptx.cuh"

namespace flash3::device {

// Two float32 to a register of two 16-bit values, the first one in the low half, rounded to nearest even.
template <class Element>
__device__ __forceinline__ uint32_t pack2(float lo, float hi);

template <>
__device__ __forceinline__ uint32_t pack2<cutlass::half_t>(float lo, float hi) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}

template <>
__device__ __forceinline__ uint32_t pack2<cutlass::bfloat16_t>(float lo, float hi) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

struct RowResult {
  float lse;     // natural logarithm
  float factor;  // turns the accumulated output into the result
  bool empty;    // no key was visible: the result is 0 whatever was accumulated
};

struct OnlineSoftmax {
  static constexpr float kLazyLog2 = 8.f;

  float row_max[2];  // reference of the exponentials, within kLazyLog2 of the maximum so far; before the scale
  float row_sum[2];  // this thread's share of sum exp2(scale_log2 * (s - row_max))
  float scale_log2;

  __device__ __forceinline__ explicit OnlineSoftmax(float scale)
      : row_max{-INFINITY, -INFINITY}, row_sum{0.f, 0.f}, scale_log2(scale) {}

  // Replaces the scores of a new block by exp2(scale_log2 * (s - row_max)) and returns in `correction` the factor for
  // everything accumulated before, nearly always 1: row_max follows the true maximum only once that is 2^kLazyLog2
  // ahead, which every format holds, so that the accumulated output seldom has to be rescaled.
  template <int kS>
  __device__ __forceinline__ void update(float (&s)[kS], float (&correction)[2]) {
    float top[2][4];  // independent chains, so that the maximum does not wait for itself
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i / 2 % 2][i / 4 * 2 + i % 2] = s[i];
#pragma unroll
    for (int i = 8; i < kS; ++i) {
      float &t = top[i / 2 % 2][i / 4 % 2 * 2 + i % 2];
      t = fmaxf(t, s[i]);
    }
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = row_max[r];
      const float now = fmaxf(before, quad_max(fmaxf(fmaxf(top[r][0], top[r][1]), fmaxf(top[r][2], top[r][3]))));
      // From -inf the first time; -inf or +inf twice gives NaN here, and the old value stays.
      const bool grows = (now - before) * scale_log2 > kLazyLog2;
      row_max[r] = grows ? now : before;
      // Exactly 1 where nothing changed: callers skip the rescaling then.
      correction[r] = grows ? ptx::ex2((before - now) * scale_log2) : 1.f;
      // A row that has seen no key yet has a maximum of -inf: with 0 instead, its masked scores give exp2(-inf) = 0.
      shift[r] = row_max[r] == -INFINITY ? 0.f : row_max[r] * scale_log2;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum[2] = {0.f, 0.f};
#pragma unroll
      for (int j = 0; j < kS / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float p = ptx::ex2(fmaf(s[4 * j + 2 * r + c], scale_log2, -shift[r]));
          s[4 * j + 2 * r + c] = p;
          sum[c] += p;
        }
      }
      row_sum[r] = row_sum[r] * correction[r] + (sum[0] + sum[1]);
    }
  }

  // What is left to do for row r. A sink is one more logit (in units of log2; -inf: none) without a value.
  __device__ __forceinline__ RowResult finish(int r, float sink_log2) const {
    const float max_log2 = row_max[r] == -INFINITY ? -INFINITY : row_max[r] * scale_log2;
    const float sum = quad_sum(row_sum[r]);
    const float top = fmaxf(max_log2, sink_log2);
    const float shift = top == -INFINITY ? 0.f : top;
    const float keep = ptx::ex2(max_log2 - shift);
    const float total = sum * keep + ptx::ex2(sink_log2 - shift);
    constexpr float kLn2 = 0.693147180559945309f;
    RowResult out;
    out.lse = total == 0.f ? -INFINITY : (shift + log2f(total)) * kLn2;
    out.factor = keep / total;
    out.empty = sum == 0.f;  // the first visible score alone added 1
    return out;
  }
};

// Scores in accumulator layout to A operands of the next product, in place of the same columns.
template <class Element, int kS>
__device__ __forceinline__ void pack_probabilities(const float (&s)[kS], uint32_t (&p)[kS / 2]) {
#pragma unroll
  for (int i = 0; i < kS / 2; ++i) p[i] = pack2<Element>(s[2 * i], s[2 * i + 1]);
}

}  // namespace flash3::device
