// Keeps NaN and Inf of V rows away from the queries that do not see them, in the split-KV kernel.
//
// The tensor cores multiply the zero probabilities of masked keys, too, and 0 * NaN is NaN. V rows that are not finite,
// and not visible to all queries, are therefore taken out of the product, and added to the queries that see them one by
// one.
#pragma once

#include <cstdint>

#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"

namespace flash3::device {

// Keys of a block in front of `left`, and from `right` to `end`, which is not before it.
struct Suspects {
  int32_t left, right, end;

  // Those that lie outside [seen_begin, seen_end), of so many keys of the block.
  static __device__ __forceinline__ Suspects outside(int32_t seen_begin, int32_t seen_end, int32_t keys) {
    const int32_t left = min(max(seen_begin, 0), keys);
    return {left, min(max(seen_end, left), keys), keys};
  }

  __device__ __forceinline__ int32_t count() const { return left + end - right; }
  __device__ __forceinline__ int32_t key(int32_t i) const { return i < left ? i : right + i - left; }
};

template <class Traits>
struct Poison {
  using Element = typename Traits::Element;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr uint32_t kBarrier = 1;  // named barrier, of the consumers

  typename Traits::SharedStorage &smem;  // poison is 0 between calls

  // By all consumers, before the product: v is the block in shared memory, which has arrived. suspects: its keys that
  // some query of the tile does not see. p: probabilities, not yet rounded; o: what the product will be added to.
  // key_begin, key_end: of the thread's rows, from the block's first key.
  __device__ __forceinline__ void take_out(Element *v, const Suspects &suspects, const float (&p)[kBlockN / 2],
                                           float (&o)[Traits::kHeadDim / 2], const int32_t (&key_begin)[2],
                                           const int32_t (&key_end)[2]) const {
    if (suspects.count() == 0) return;
    ptx::bar_sync(kBarrier, Traits::kConsumerThreads);  // all have read what was found in the block before
    find(v, suspects);
    ptx::bar_sync(kBarrier, Traits::kConsumerThreads);
    uint32_t any = 0;
#pragma unroll
    for (int word = 0; word < kBlockN / 32; ++word) any |= smem.poison[word];
    if (any == 0) return;
#pragma unroll 1
    for (int key = 0; key < kBlockN; ++key) {
      if ((smem.poison[key / 32] >> (key % 32) & 1) != 0) add(v, key, p, o, key_begin, key_end);
    }
    ptx::bar_sync(kBarrier, Traits::kConsumerThreads);
#pragma unroll 1
    for (int i = threadIdx.x; i < kBlockN * (Traits::kHeadDim / 8); i += Traits::kConsumerThreads) {
      const int key = i / (Traits::kHeadDim / 8);
      if ((smem.poison[key / 32] >> (key % 32) & 1) != 0) *chunk(v, key, i % (Traits::kHeadDim / 8) * 8) = {};
    }
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(kBarrier, Traits::kConsumerThreads);
    if (threadIdx.x < kBlockN / 32) smem.poison[threadIdx.x] = 0;
    ptx::bar_sync(kBarrier, Traits::kConsumerThreads);
  }

 private:
  static __device__ __forceinline__ uint4 *chunk(Element *v, int key, int col) {
    return reinterpret_cast<uint4 *>(reinterpret_cast<char *>(v) + Traits::template offset<kBlockN>(key, col));
  }

  __device__ __forceinline__ void find(Element *v, const Suspects &suspects) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < suspects.count() * (Traits::kHeadDim / 8); i += Traits::kConsumerThreads) {
      const int key = suspects.key(i / (Traits::kHeadDim / 8));
      const uint4 &x = *chunk(v, key, i % (Traits::kHeadDim / 8) * 8);
      if (!all_finite<Element>(x)) atomicOr(&smem.poison[key / 32], 1u << (key % 32));
    }
  }

  // What a key adds to the rows of this thread that see it.
  __device__ __forceinline__ void add(Element *v, int key, const float (&p)[kBlockN / 2],
                                      float (&o)[Traits::kHeadDim / 2], const int32_t (&key_begin)[2],
                                      const int32_t (&key_end)[2]) const {
    const int lane = threadIdx.x % 32;
    float own[2] = {0.f, 0.f};  // of this thread, if it holds the key's column
#pragma unroll
    for (int i = 0; i < kBlockN / 2; ++i) {
      if (8 * (i / 4) + 2 * (lane % 4) + i % 2 == key) own[i / 2 % 2] = p[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float weight = __shfl_sync(0xffffffffu, own[r], lane / 4 * 4 + key % 8 / 2);
      if (key < key_begin[r] || key >= key_end[r]) continue;
#pragma unroll
      for (int j = 0; j < Traits::kHeadDim / 8; ++j) {
        const auto *const pair = reinterpret_cast<const Element *>(chunk(v, key, 8 * j)) + 2 * (lane % 4);
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
