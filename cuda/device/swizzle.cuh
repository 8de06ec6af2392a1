// Where TMA puts a tile in swizzled shared memory: see gmma.cuh for column blocks.
#pragma once

#include <cstdint>

namespace flash3::device {

// Byte offset of 16 bytes in a tile of kRows rows; col: a multiple of 8. A swizzle of 128 or 64 bytes exchanges 16-byte
// pieces of a row in a way that repeats every 8 rows of 128 bytes.
template <int kSwizzleBytes, int kRows>
__device__ __forceinline__ uint32_t swizzled_offset(int row, int col) {
  static_assert(kSwizzleBytes == 128 || kSwizzleBytes == 64, "those are used");
  constexpr int kBoxCols = kSwizzleBytes / 2;
  uint32_t at = row * kSwizzleBytes + col % kBoxCols * 2;
  at ^= (at >> 3) & ((kSwizzleBytes / 16 - 1) << 4);
  return at + col / kBoxCols * (kRows * kSwizzleBytes);
}

}  // namespace flash3::device
