// Which keys a query row sees. Rows and keys are counted from the start of their own sequence.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace flash3::core {

// The window of a call, independent of lengths. -1 means unlimited on that side.
struct Window {
  int64_t left;
  int64_t right;

  // Sides wider than any sequence are cut to 2^32, so that no sum with row numbers can overflow.
  FLASH3_HD static Window make(int64_t left, int64_t right) {
    constexpr int64_t kWidest = int64_t{1} << 32;
    return {left > kWidest ? kWidest : left, right > kWidest ? kWidest : right};
  }

  FLASH3_HD constexpr bool limited() const { return left >= 0 || right >= 0; }
};

// The mask of one sequence: keys [key_begin(i), key_end(i)) are visible to row i. 64-bit arithmetic throughout, since
// row + seqlen_k - seqlen_q + right may pass 2^31 for legal lengths and windows.
struct Mask {
  Window window;
  int32_t seqlen_q;
  int32_t seqlen_k;

  // Key under the diagonal of row i: the sequences are aligned at their ends (bottom-right).
  FLASH3_HD int64_t diagonal(int64_t i) const { return i + seqlen_k - seqlen_q; }

  FLASH3_HD int32_t key_begin(int64_t i) const {
    if (window.left < 0) return 0;
    const int64_t j = diagonal(i) - window.left;
    return static_cast<int32_t>(j < 0 ? 0 : (j > seqlen_k ? seqlen_k : j));
  }

  FLASH3_HD int32_t key_end(int64_t i) const {
    if (window.right < 0) return seqlen_k;
    const int64_t j = diagonal(i) + window.right + 1;
    return static_cast<int32_t>(j < 0 ? 0 : (j > seqlen_k ? seqlen_k : j));
  }

  FLASH3_HD bool visible(int64_t i, int64_t j) const { return j >= key_begin(i) && j < key_end(i); }
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

 private:
  static constexpr int32_t kFar = 1 << 20;
  FLASH3_HD static int32_t cut(int64_t x) { return static_cast<int32_t>(x < -kFar ? -kFar : (x > kFar ? kFar : x)); }
};

}  // namespace flash3::core
