// The product of a warp, mma.sync: 16 x 8, 16 deep, of 16-bit values, accumulated in float32.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <cute/arch/mma_sm80.hpp>

namespace flash3::device {

template <class Element>
struct WarpMma;
template <>
struct WarpMma<cutlass::half_t> {
  using Atom = cute::SM80_16x8x16_F32F16F16F32_TN;
};
template <>
struct WarpMma<cutlass::bfloat16_t> {
  using Atom = cute::SM80_16x8x16_F32BF16BF16F32_TN;
};

}  // namespace flash3::device
