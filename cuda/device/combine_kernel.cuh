// flash3_combine on the GPU. A warp, or several that share the splits, makes one result: a row of one head.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <cstdint>
#include <type_traits>

#include "core/macros.h"
#include "device/merge.cuh"
#include "device/pack.cuh"
#include "device/softmax.cuh"

namespace flash3::device {

inline constexpr int kCombineThreads = 256;
inline constexpr int kCombineWarps = kCombineThreads / 32;
inline constexpr int kMostCombined = 256;  // core::kMaxSplits

struct CombineStrides {
  int64_t batch, row, head;

  FLASH3_HD int64_t offset(int64_t b, int64_t i, int64_t h) const { return b * batch + i * row + h * head; }
};

struct CombineArgs {
  const float *out_partial, *lse_partial;
  void *out;
  float *lse;  // may be NULL
  int64_t out_partial_split_stride, lse_partial_split_stride;
  CombineStrides out_partial_strides, lse_partial_strides, out_strides, lse_strides;
  int64_t results;  // batch * seqlen * nheads
  int64_t seqlen;
  int32_t nheads, head_dim, num_splits;
  int32_t warps_per_result;  // a power of two, at most kCombineWarps
};

// Neighbouring columns of a thread, as one access.
template <int kColumns>
struct alignas(4 * kColumns) Floats {
  float x[kColumns];
};

template <int kWords>
struct alignas(4 * kWords) Words {
  uint32_t x[kWords];
};

template <class Out, int kColumns>
__device__ __forceinline__ void store_columns(Out *to, const float (&x)[kColumns]) {
  if constexpr (std::is_same_v<Out, float>) {
    Floats<kColumns> out;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) out.x[j] = x[j];
    *reinterpret_cast<Floats<kColumns> *>(to) = out;
  } else if constexpr (kColumns == 1) {
    *reinterpret_cast<uint16_t *>(to) = static_cast<uint16_t>(pack2<Out>(x[0], 0.f));
  } else {
    Words<kColumns / 2> out;
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) out.x[j] = pack2<Out>(x[2 * j], x[2 * j + 1]);
    *reinterpret_cast<Words<kColumns / 2> *>(to) = out;
  }
}

// The sums of the warps that share a result, added up in the first one of them.
template <int kColumns>
__device__ __forceinline__ void add_warps(Floats<kColumns> (&shared)[kCombineWarps][32], int warp, int lane, int part,
                                          int warps, float (&sum)[kColumns]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) shared[warp][lane].x[j] = sum[j];
  __syncthreads();
  if (part == 0) {
    for (int other = 1; other < warps; ++other) {
      const Floats<kColumns> more = shared[warp + other][lane];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sum[j] += more.x[j];
    }
  }
  __syncthreads();
}

// kColumns divides head_dim, and then every vector of so many columns is aligned.
template <class Out, int kColumns>
__global__ void __launch_bounds__(kCombineThreads, 2) combine_kernel(const __grid_constant__ CombineArgs args) {
  constexpr int kAtOnce = 8;
  using Weights = MergeWeights<kMostCombined>;
  __shared__ Floats<kColumns> shared[kCombineWarps][32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = args.warps_per_result;
  const int part = warp % warps;
  // Every warps-th bit, from `part` on.
  const uint32_t splits_of_part = 0xffffffffu / ((1u << warps) - 1u) << part;
  const int results_at_once = kCombineWarps / warps;
  // Whole blocks go through the loops, for the barriers inside.
  for (int64_t first = int64_t{blockIdx.x} * results_at_once; first < args.results;
       first += int64_t{gridDim.x} * results_at_once) {
    const int64_t result = first + warp / warps;
    const bool used = result < args.results;
    const int64_t row = result / args.nheads;
    const int64_t h = result - row * args.nheads;
    const int64_t b = row / args.seqlen;
    const int64_t i = row - b * args.seqlen;
    const int num_splits = used ? args.num_splits : 0;
    const float *const lses = args.lse_partial + args.lse_partial_strides.offset(b, i, h);
    const float *const partials = args.out_partial + args.out_partial_strides.offset(b, i, h);
    Out *const out = static_cast<Out *>(args.out) + args.out_strides.offset(b, i, h);
    const Weights weights = Weights::of(num_splits, [&](int s) { return lses[s * args.lse_partial_split_stride]; });
    for (int64_t begin = 0; begin < args.head_dim; begin += 32 * kColumns) {
      const int64_t column = begin + lane * kColumns;
      const bool inside = column < args.head_dim;
      float sum[kColumns] = {};
      weights.template accumulate<kAtOnce>(
          num_splits, splits_of_part,
          [&](int s, float(&values)[kColumns]) {
            if (!inside) return;
            const auto loaded =
                *reinterpret_cast<const Floats<kColumns> *>(partials + s * args.out_partial_split_stride + column);
#pragma unroll
            for (int j = 0; j < kColumns; ++j) values[j] = loaded.x[j];
          },
          sum);
      if (warps > 1) add_warps(shared, warp, lane, part, warps, sum);
      if (!used || !inside || part != 0) continue;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sum[j] *= weights.factor();
      store_columns(out + column, sum);
    }
    if (used && part == 0 && lane == 0 && args.lse != nullptr) {
      args.lse[args.lse_strides.offset(b, i, h)] = weights.lse();
    }
  }
}

}  // namespace flash3::device
