// The rings of key blocks that the producers of the split-KV kernel fill and the consumers empty, of K and of V.
#pragma once

#include <cstdint>

#include "device/split_args.h"

namespace flash3::device {

// A position in a ring of `size` buffers, and the parity of the phase that is being waited for. A producer waits
// for the phase before the first one, which has passed.
struct SplitRing {
  int size;
  uint32_t parity;
  int index = 0;

  __device__ __forceinline__ SplitRing(int buffers, uint32_t first_parity) : size(buffers), parity(first_parity) {}
  __device__ __forceinline__ void advance() {
    if (++index == size) {
      index = 0;
      parity ^= 1;
    }
  }
};

// Whether consumers give buffers back by lane, not by warp: where they have read themselves what others will copy to,
// as racecheck does not follow what __syncwarp() orders.
template <class Traits>
__device__ __forceinline__ bool lanes_give_back(const SplitArgs &args) {
  return Traits::kByWarps && args.key_loads == KeyLoads::kAsyncCopy;
}

template <class Traits>
__device__ __forceinline__ int ring_size(const SplitArgs &args) {
  return Traits::kStagesVary ? args.stages : Traits::kStages;
}

}  // namespace flash3::device
