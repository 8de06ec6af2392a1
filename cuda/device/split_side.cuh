// K or V of a call of the split-KV kernel, whose producers differ in nothing else.
#pragma once

#include <cstdint>

#include "device/split_args.h"

namespace flash3::device {

enum SplitSide : int { kOfK = 0, kOfV = 1 };

__device__ __forceinline__ const TensorRows &tensor_of(const SplitArgs &args, SplitSide side) {
  return side == kOfK ? args.k : args.v;
}
__device__ __forceinline__ int32_t head_dim_of(const SplitArgs &args, SplitSide side) {
  return side == kOfK ? args.head_dim : args.head_dim_v;
}
__device__ __forceinline__ const CUtensorMap *map_of(const SplitArgs &args, SplitSide side) {
  return side == kOfK ? &args.k_map : &args.v_map;
}

}  // namespace flash3::device
