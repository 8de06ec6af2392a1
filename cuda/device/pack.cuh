// Registers of two 16-bit values: from pairs of float32, and whether they are finite.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <cstdint>
#include <type_traits>

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

// Whether eight values are.
template <class Element>
__device__ __forceinline__ bool all_finite(const uint4 &x) {
  constexpr uint32_t kExponent = std::is_same_v<Element, cutlass::half_t> ? 0x7c00 : 0x7f80;
  bool all = true;
  for (const uint32_t two : {x.x, x.y, x.z, x.w}) {
    all = all && (two & kExponent) != kExponent && (two >> 16 & kExponent) != kExponent;
  }
  return all;
}

// Scores in accumulator layout to A operands of the next product, in place of the same columns.
template <class Element, int kS>
__device__ __forceinline__ void pack_probabilities(const float (&s)[kS], uint32_t (&p)[kS / 2]) {
#pragma unroll
  for (int i = 0; i < kS / 2; ++i) p[i] = pack2<Element>(s[2 * i], s[2 * i + 1]);
}

}  // namespace flash3::device
