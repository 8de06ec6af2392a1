// Rotary embedding of a few columns in registers: float32 arithmetic, rounded once to the element type.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <cstdint>

#include "device/pack.cuh"
#include "device/softmax.cuh"

namespace flash3::device {

// The inverse of pack2().
template <class Element>
__device__ __forceinline__ float2 unpack2(uint32_t x);

template <>
__device__ __forceinline__ float2 unpack2<cutlass::half_t>(uint32_t x) {
  return __half22float2(reinterpret_cast<const __half2 &>(x));
}

template <>
__device__ __forceinline__ float2 unpack2<cutlass::bfloat16_t>(uint32_t x) {
  return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}

// Rounded as on the host, which does not fuse products and sums.
__device__ __forceinline__ void turn_pair(float cosine, float sine, float *x, float *y) {
  const float turned = __fsub_rn(__fmul_rn(*x, cosine), __fmul_rn(*y, sine));
  *y = __fadd_rn(__fmul_rn(*x, sine), __fmul_rn(*y, cosine));
  *x = turned;
}

// 8 columns.
struct alignas(16) RowVector {
  uint32_t words[4];
};

struct alignas(8) HalfRowVector {
  uint32_t words[2];
};

// cos, sin: of the 8 pairs that these columns of the two halves make.
template <class Element>
__device__ __forceinline__ void turn_halves(const Element *cos, const Element *sin, RowVector *left, RowVector *right) {
  const RowVector c = *reinterpret_cast<const RowVector *>(cos);
  const RowVector s = *reinterpret_cast<const RowVector *>(sin);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float2 x = unpack2<Element>(left->words[w]);
    float2 y = unpack2<Element>(right->words[w]);
    const float2 cosines = unpack2<Element>(c.words[w]);
    const float2 sines = unpack2<Element>(s.words[w]);
    turn_pair(cosines.x, sines.x, &x.x, &y.x);
    turn_pair(cosines.y, sines.y, &x.y, &y.y);
    left->words[w] = pack2<Element>(x.x, x.y);
    right->words[w] = pack2<Element>(y.x, y.y);
  }
}

// cos, sin: of the 4 pairs that these columns make.
template <class Element>
__device__ __forceinline__ void turn_neighbours(const Element *cos, const Element *sin, RowVector *row) {
  const HalfRowVector c = *reinterpret_cast<const HalfRowVector *>(cos);
  const HalfRowVector s = *reinterpret_cast<const HalfRowVector *>(sin);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float2 pair = unpack2<Element>(row->words[w]);
    const float2 cosines = unpack2<Element>(c.words[w / 2]);
    const float2 sines = unpack2<Element>(s.words[w / 2]);
    turn_pair(w % 2 == 0 ? cosines.x : cosines.y, w % 2 == 0 ? sines.x : sines.y, &pair.x, &pair.y);
    row->words[w] = pack2<Element>(pair.x, pair.y);
  }
}

}  // namespace flash3::device
