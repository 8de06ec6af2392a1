// Prefix sums.
#pragma once

#include <cstdint>

namespace flash3::device {

// Of a warp's values, up to each lane's own one.
__device__ __forceinline__ int64_t inclusive_scan(int64_t x) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int64_t other = __shfl_up_sync(0xffffffffu, x, offset);
    if (threadIdx.x % 32 >= offset) x += other;
  }
  return x;
}

}  // namespace flash3::device
