// Attention over parts of the keys, merged by warps: see flash3_combine_params for the formula.
#pragma once

#include <cmath>
#include <cstdint>

namespace flash3::device {

// The weights of up to kMostParts results, 32 of them in each register of a warp. All lanes of the warp make one, and
// call its functions, together.
template <int kMostParts>
struct MergeWeights {
  static constexpr int kRegisters = (kMostParts + 31) / 32;
  static constexpr float kUnread = -1.f;  // of a part that has seen no key: its result may hold anything

  float weight[kRegisters];  // exp(lse - top) of part 32 * register + lane
  float top;                 // the largest lse; NaN if there is a NaN
  float total;               // sum of the weights

  // lse(i): natural logarithm, of part i < num_parts <= kMostParts. Each lane asks for its own parts.
  template <class Lse>
  static __device__ __forceinline__ MergeWeights of(int num_parts, Lse lse) {
    const int lane = threadIdx.x % 32;
    MergeWeights merge;
    merge.top = -INFINITY;
    bool nan = false;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      float &x = merge.weight[r];
      x = 32 * r + lane < num_parts ? lse(32 * r + lane) : -INFINITY;
      nan |= x != x;
      merge.top = fmaxf(merge.top, x);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      merge.top = fmaxf(merge.top, __shfl_xor_sync(0xffffffffu, merge.top, offset));
    }
    if (__any_sync(0xffffffffu, nan)) merge.top = NAN;  // fmaxf() passes over it
    merge.total = 0.f;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      float &x = merge.weight[r];
      const bool unread = x == -INFINITY;
      x = unread ? kUnread : expf(x - merge.top);
      merge.total += unread ? 0.f : x;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      merge.total += __shfl_xor_sync(0xffffffffu, merge.total, offset);
    }
    return merge;
  }

  // A total that is not 0 is at least 1, or NaN.
  __device__ __forceinline__ float lse() const { return total == 0.f ? -INFINITY : top + logf(total); }

  // Turns weighted sums into the result.
  __device__ __forceinline__ float factor() const { return total == 0.f ? 0.f : 1.f / total; }

  // sum[j] += weight * column j, over the parts that count and whose bit is set in `lanes`, bit i % 32 for part i: so
  // several warps may share a sum. load(i, values) fills this lane's columns of part i; kAtOnce of them are under way
  // at a time.
  template <int kAtOnce, int kColumns, class Load>
  __device__ __forceinline__ void accumulate(int num_parts, uint32_t lanes, Load load, float (&sum)[kColumns]) const {
    float next[kRegisters];
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) next[r] = weight[r];
    // Not unrolled, which would be a lot of code for what is often one round: the registers move up instead.
#pragma unroll 1
    for (int begin = 0; begin < num_parts; begin += 32) {
      const float weights = next[0];
#pragma unroll
      for (int r = 0; r + 1 < kRegisters; ++r) next[r] = next[r + 1];
      uint32_t rest = __ballot_sync(0xffffffffu, weights != kUnread) & lanes;
      while (rest != 0) {
        float factors[kAtOnce];
        float values[kAtOnce][kColumns];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          const int lane = rest != 0 ? __ffs(rest) - 1 : 0;
          const float w = __shfl_sync(0xffffffffu, weights, lane);
          factors[k] = rest != 0 ? w : 0.f;
#pragma unroll
          for (int j = 0; j < kColumns; ++j) values[k][j] = 0.f;
          if (rest != 0) load(begin + lane, values[k]);
          rest &= rest - 1;  // 0 stays 0
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) sum[j] = fmaf(factors[k], values[k][j], sum[j]);
        }
      }
    }
  }
};

}  // namespace flash3::device
