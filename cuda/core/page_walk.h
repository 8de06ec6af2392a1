// The place in its pages of one key of each key block, block after block from the last one to the first, without
// dividing on the way: that is the producer's of a cache.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "core/macros.h"

namespace flash3::core {

// A key block in whole pages, and the rows that are left.
struct PageStep {
  int32_t pages, rows;

  // page_size: 0 without pages.
  static PageStep make(int32_t block_n, int32_t page_size) {
    return page_size > 0 ? PageStep{block_n / page_size, block_n % page_size} : PageStep{0, 0};
  }
};

template <int kBlockN>
struct PageWalk {
  int32_t key, number, row;  // number: of the page in the sequence; row: in the page

  // first_row: of the sequence's first key, in its pages; first_key: in the last block, perhaps behind the last key.
  FLASH3_HD PageWalk(const KvCache &cache, const PageStep &step, int32_t first_row, uint32_t first_key) {
    // Divisors are for numbers below 2^31, but a block may end behind them: it is gone back to, then.
    const bool beyond = first_row + first_key > INT32_MAX;
    key = static_cast<int32_t>(first_key + (beyond ? -kBlockN : 0));
    const auto at = static_cast<uint32_t>(first_row + key);
    number = static_cast<int32_t>(cache.page_divisor.quotient(at));
    row = static_cast<int32_t>(at) - number * cache.page_size;
    if (beyond) {
      key += kBlockN;
      number += step.pages;
      row += step.rows;
      if (row >= cache.page_size) {
        row -= cache.page_size;
        ++number;
      }
    }
  }

  // To the block before. In front of the first one there are no keys, and what number is does not matter.
  FLASH3_HD void back(const KvCache &cache, const PageStep &step) {
    key -= kBlockN;
    number -= step.pages;
    row -= step.rows;
    if (row < 0) {
      row += cache.page_size;
      --number;
    }
  }

  // Whether it is one of so many keys.
  FLASH3_HD bool is_among(int32_t keys) const { return static_cast<uint32_t>(key) < static_cast<uint32_t>(keys); }
};

}  // namespace flash3::core
