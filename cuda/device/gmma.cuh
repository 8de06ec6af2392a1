// Warpgroup matrix products (wgmma) on tiles in swizzled shared memory.
//
// Every tile lies in shared memory as column blocks: block c holds columns [c * W, c * W + W) of all rows, W = 64
// columns of 16 bits (128 bytes, 128-byte swizzle) or W = 32 (64 bytes, 64-byte swizzle), which is just how TMA writes
// a box of W columns.
#pragma once

#include <cstdint>
#include <utility>

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/util.hpp>

namespace flash3::device {

using cute::SM90::GMMA::Major;
using cute::SM90::GMMA::ScaleOut;

// The wgmma of 64 x kN x 16: Ss takes A from shared memory (K-major), Rs from registers; B is always in shared memory.
template <class Element, int kN, Major kMajorB>
struct Gmma;

#define FLASH3_GMMA(N)                                                              \
  template <Major kMajorB>                                                          \
  struct Gmma<cutlass::half_t, N, kMajorB> {                                        \
    using Ss = cute::SM90::GMMA::MMA_64x##N##x16_F32F16F16_SS<Major::K, kMajorB>;   \
    using Rs = cute::SM90::GMMA::MMA_64x##N##x16_F32F16F16_RS<Major::K, kMajorB>;   \
  };                                                                                \
  template <Major kMajorB>                                                          \
  struct Gmma<cutlass::bfloat16_t, N, kMajorB> {                                    \
    using Ss = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_SS<Major::K, kMajorB>; \
    using Rs = cute::SM90::GMMA::MMA_64x##N##x16_F32BF16BF16_RS<Major::K, kMajorB>; \
  }

FLASH3_GMMA(64);
FLASH3_GMMA(80);
FLASH3_GMMA(96);
FLASH3_GMMA(128);
FLASH3_GMMA(192);
FLASH3_GMMA(256);
#undef FLASH3_GMMA

// Shared-memory matrix descriptors, PTX ISA "Matrix descriptor format": address and leading byte offset in the low
// word, stride byte offset and swizzle mode in the high word, all offsets in units of 16 bytes. The high word is a
// constant and stepping through a tile never carries into it, so only the low word is kept, as a 32-bit value that is
// the same in every lane: that lets the compiler hold it in a uniform register.
template <int kSwizzleBytes>
struct SmemDescriptor {
  static_assert(kSwizzleBytes == 128 || kSwizzleBytes == 64, "tiles are written with 128- or 64-byte swizzle");
  static constexpr uint32_t kMode = (kSwizzleBytes == 128 ? 1u : 2u) << 30;
  static constexpr uint32_t kHigh = kMode | (8 * kSwizzleBytes / 16);  // stride: 8 rows

  // Low word for a tile at shared-memory address `smem`, a multiple of the bytes of 8 rows. K-major: rows run along M
  // or N, columns along K; the leading offset is not used.
  static __device__ __forceinline__ uint32_t k_major(uint32_t smem) { return (smem >> 4) | (1u << 16); }

  // MN-major: rows run along K, columns along N. kRows is the number of rows of a column block.
  template <int kRows>
  static __device__ __forceinline__ uint32_t mn_major(uint32_t smem) {
    return (smem >> 4) | (uint32_t{kRows * kSwizzleBytes / 16} << 16);
  }

  static __device__ __forceinline__ uint64_t at(uint32_t low) { return (uint64_t{kHigh} << 32) | low; }
};

namespace detail {

template <class Atom, int kC, size_t... I>
__device__ __forceinline__ void wgmma_ss(uint64_t a, uint64_t b, float (&c)[kC], ScaleOut scale,
                                         std::index_sequence<I...>) {
  Atom::fma(a, b, c[I]..., scale);
}

template <class Atom, int kC, size_t... I>
__device__ __forceinline__ void wgmma_rs(const uint32_t *a, uint64_t b, float (&c)[kC], ScaleOut scale,
                                         std::index_sequence<I...>) {
  Atom::fma(a[0], a[1], a[2], a[3], b, c[I]..., scale);
}

}  // namespace detail

// Keeps the compiler from moving accesses to accumulators across the asynchronous product that owns them.
template <int kC>
__device__ __forceinline__ void fence_accumulators(float (&c)[kC]) {
#pragma unroll
  for (int i = 0; i < kC; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

__device__ __forceinline__ void wgmma_fence() { cute::warpgroup_arrive(); }
__device__ __forceinline__ void wgmma_commit_group() { cute::warpgroup_commit_batch(); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  cute::warpgroup_wait<kPending>();
}

// C(64 x kN) = A(64 x kK) * B(kN x kK)^T, both in shared memory, columns along K; issued and committed, not awaited.
// a and b are low words of descriptors; kRowsA and kRowsB are the rows of a column block of the tiles that A and B are
// part of. The first kKept steps of 16 columns of A are taken from registers instead: `kept`, four for each.
template <class Element, int kN, int kK, int kSwizzleBytes, int kRowsA, int kRowsB, int kKept = 0>
__device__ __forceinline__ void gemm_ss(uint32_t a, uint32_t b, float (&c)[kN / 2], const uint32_t *kept = nullptr) {
  using Descriptor = SmemDescriptor<kSwizzleBytes>;
  using Atoms = Gmma<Element, kN, Major::K>;
  constexpr int kStepsPerBlock = kSwizzleBytes / 32;  // a step of 16 values is 32 bytes
  static_assert(kKept <= kK / 16, "no more than there are");
  fence_accumulators(c);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kK / 16; ++k) {
    const int block = k / kStepsPerBlock;
    const int inside = (k % kStepsPerBlock) * 2;
    const uint64_t b_step = Descriptor::at(b + block * (kRowsB * kSwizzleBytes / 16) + inside);
    const ScaleOut scale = k == 0 ? ScaleOut::Zero : ScaleOut::One;
    if (k < kKept) {
      detail::wgmma_rs<typename Atoms::Rs>(kept + 4 * k, b_step, c, scale, std::make_index_sequence<kN / 2>{});
    } else {
      detail::wgmma_ss<typename Atoms::Ss>(Descriptor::at(a + block * (kRowsA * kSwizzleBytes / 16) + inside), b_step,
                                           c, scale, std::make_index_sequence<kN / 2>{});
    }
  }
  wgmma_commit_group();
}

// C(64 x kN) += A(64 x kK) * B(kK x kN): A in registers, B in shared memory, rows along K; issued and committed.
template <class Element, int kN, int kK, int kSwizzleBytes>
__device__ __forceinline__ void gemm_rs(uint32_t (&a)[kK / 4], uint32_t b, float (&c)[kN / 2]) {
  using Atom = typename Gmma<Element, kN, Major::MN>::Rs;
#pragma unroll
  for (int i = 0; i < kK / 4; ++i) asm volatile("" : "+r"(a[i])::"memory");
  fence_accumulators(c);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kK / 16; ++k) {
    detail::wgmma_rs<Atom>(a + 4 * k, SmemDescriptor<kSwizzleBytes>::at(b + k * kSwizzleBytes), c, ScaleOut::One,
                           std::make_index_sequence<kN / 2>{});
  }
  wgmma_commit_group();
}

}  // namespace flash3::device
