// Keeps NaN and Inf of keys away from the queries that do not see them, in the kernel of latent attention: as in
// poison.cuh, for a warpgroup's columns.
#pragma once

#include <cstdint>

#include "device/mla_traits.cuh"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"

namespace flash3::device {

template <class Traits, int kGroup>
struct MlaPoison {
  using Element = typename Traits::Element;
  using Chunk = typename Traits::Chunk;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kVectors = Traits::kHalfCols / 8;  // of 16 bytes, of a key

  typename Traits::SharedStorage &smem;

  // By the warpgroup, before the product of its columns of the block: `values` are their chunks in shared memory, `p`
  // the probabilities, likewise. o: what the product will be added to. first_row: of the thread's warp.
  __device__ __forceinline__ void take_out(Chunk *values, const Chunk &p, float (&o)[Traits::kHalfCols / 2],
                                           int first_row, const int32_t (&key_begin)[2],
                                           const int32_t (&key_end)[2]) const {
    uint32_t(&found)[kBlockN / 32] = smem.poison[kGroup];
    const int thread = threadIdx.x % 128;
    ptx::bar_sync(kMlaWithin + kGroup, 128);  // all have read what was found in the block before
    if (thread < kBlockN / 32) found[thread] = 0;
    ptx::bar_sync(kMlaWithin + kGroup, 128);
    find(values, found);
    ptx::bar_sync(kMlaWithin + kGroup, 128);
    if ((found[0] | found[1]) == 0) return;
#pragma unroll 1
    for (int key = 0; key < kBlockN; ++key) {
      if ((found[key / 32] >> (key % 32) & 1) != 0) add(values, p, key, o, first_row, key_begin, key_end);
    }
    ptx::bar_sync(kMlaWithin + kGroup, 128);
#pragma unroll 1
    for (int i = thread; i < kBlockN * kVectors; i += 128) {
      const int key = i / kVectors;
      if ((found[key / 32] >> (key % 32) & 1) != 0) *vector(values, key, i % kVectors * 8) = {};
    }
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(kMlaWithin + kGroup, 128);
  }

 private:
  static __device__ __forceinline__ uint4 *vector(Chunk *values, int key, int col) {
    return reinterpret_cast<uint4 *>(reinterpret_cast<char *>(values) + Traits::offset(key, col));
  }

  static __device__ __forceinline__ Element probability(const Chunk &p, int row, int key) {
    const char *const at = reinterpret_cast<const char *>(p) + Traits::offset(row, key / 8 * 8);
    return reinterpret_cast<const Element *>(at)[key % 8];
  }

  __device__ __forceinline__ void find(Chunk *values, uint32_t (&found)[kBlockN / 32]) const {
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < kBlockN * kVectors; i += 128) {
      const int key = i / kVectors;
      if (!all_finite<Element>(*vector(values, key, i % kVectors * 8))) atomicOr(&found[key / 32], 1u << (key % 32));
    }
  }

  // What a key adds to the rows of this thread that see it.
  __device__ __forceinline__ void add(Chunk *values, const Chunk &p, int key, float (&o)[Traits::kHalfCols / 2],
                                      int first_row, const int32_t (&key_begin)[2], const int32_t (&key_end)[2]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (key < key_begin[r] || key >= key_end[r]) continue;
      const auto weight = static_cast<float>(probability(p, first_row + lane / 4 + 8 * r, key));
#pragma unroll
      for (int j = 0; j < Traits::kHalfCols / 8; ++j) {
        const auto *const pair = reinterpret_cast<const Element *>(vector(values, key, 8 * j)) + 2 * (lane % 4);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float &x = o[4 * j + 2 * r + c];
          x = fmaf(weight, static_cast<float>(pair[c]), x);
        }
      }
    }
  }
};

}  // namespace flash3::device
