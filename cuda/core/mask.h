// Which keys a query row sees. Rows and keys are counted from the start of their own sequence.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace flash3::core {

// The window of a call, independent of lengths. -1 means unlimited on that side.
struct Window {
  int32_t left;
  int32_t right;

  // A side as wide as the longest possible sequence hides nothing.
  FLASH3_HD static Window make(int64_t left, int64_t right) {
    return {left < kWidest ? static_cast<int32_t>(left) : -1, right < kWidest ? static_cast<int32_t>(right) : -1};
  }

  FLASH3_HD constexpr bool limited() const { return left >= 0 || right >= 0; }

 private:
  static constexpr int64_t kWidest = (int64_t{1} << 31) - 1;
};

// The mask of one sequence: keys [key_begin(i), key_end(i)) are visible to row i. In 32 bits, though row + seqlen_k -
// seqlen_q + right may pass 2^31 for legal lengths and windows: a producer computes this before its first load.
struct Mask {
  Window window;
  int32_t seqlen_q;
  int32_t seqlen_k;

  // Key under the diagonal of row i: the sequences are aligned at their ends (bottom-right).
  FLASH3_HD int64_t diagonal(int64_t i) const { return i + seqlen_k - seqlen_q; }

  // For rows from 0 on, also behind the last one.
  FLASH3_HD int32_t key_begin(int32_t i) const {
    if (window.left < 0) return 0;
    // Keys from there on; beyond 2^31 where rows and the window are many.
    const int32_t rows = seqlen_q - i;
    const uint32_t keys = static_cast<uint32_t>(rows) + static_cast<uint32_t>(window.left);
    if (rows < 0 && keys >> 31 != 0) return seqlen_k;
    return seqlen_k - static_cast<int32_t>(keys < static_cast<uint32_t>(seqlen_k) ? keys : seqlen_k);
  }

  FLASH3_HD int32_t key_end(int32_t i) const {
    if (window.right < 0) return seqlen_k;
    const int32_t rows = seqlen_q - 1 - i;  // behind this one
    const int32_t hidden = rows > window.right ? rows - window.right : 0;
    return seqlen_k - (hidden < seqlen_k ? hidden : seqlen_k);
  }

  FLASH3_HD bool visible(int32_t i, int64_t j) const { return j >= key_begin(i) && j < key_end(i); }
};

// The same around one block of keys, for up to 2^16 rows from one row on, in 32 bits: keys are counted from the first
// one of the block, and what is far away from it is cut to "far".
struct BlockMask {
  int32_t begin;   // first visible key of the first row, and one more for every further row
  int32_t end;     // likewise, behind the last one
  int32_t length;  // keys of the sequence from the block on: no row sees more

  FLASH3_HD static BlockMask make(const Mask &mask, int64_t first_row, int64_t first_key) {
    const int64_t diagonal = mask.diagonal(first_row) - first_key;
    return {mask.window.left < 0 ? -kFar : cut(diagonal - mask.window.left),
            mask.window.right < 0 ? kFar : cut(diagonal + mask.window.right + 1), cut(mask.seqlen_k - first_key)};
  }

  // Of row `row`, counted from the first one. May lie outside the block.
  FLASH3_HD int32_t key_begin(int32_t row) const { return begin + row; }
  FLASH3_HD int32_t key_end(int32_t row) const { return end + row < length ? end + row : length; }

  // So many blocks in keys, cut likewise.
  FLASH3_HD static int32_t no_farther(int32_t blocks, int32_t block_n) {
    return blocks < kFar / block_n ? blocks * block_n : kFar;
  }

 private:
  static constexpr int32_t kFar = 1 << 20;
  FLASH3_HD static int32_t cut(int64_t x) { return static_cast<int32_t>(x < -kFar ? -kFar : (x > kFar ? kFar : x)); }
};

}  // namespace flash3::core
