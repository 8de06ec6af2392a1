// Where the boxes of key blocks lie in the tensor maps of K and V for the split-KV kernel. What lies behind the last
// key reads as zero: see encode_tensor_map.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "device/ptx.cuh"

namespace flash3::device {

// Of dense and packed keys, from row `row` of the sequence on.
__device__ __forceinline__ ptx::TmaCoord key_box(const core::KvCache &cache, const core::KeySpan &span, int32_t kv_head,
                                                 int32_t row) {
  return {0, static_cast<int32_t>(cache.filled.rows - span.len) + row, static_cast<int32_t>(span.first_row + span.len),
          kv_head, static_cast<int32_t>(span.entry)};
}

// The same in page `page`. Pages hold whole blocks, and the first key is the first row of the first page.
__device__ __forceinline__ ptx::TmaCoord key_box_of_page(const core::KvCache &cache, const core::KeySpan &span,
                                                         int32_t kv_head, int64_t row, int32_t page) {
  const auto in_page =
      static_cast<int32_t>(row - int64_t{cache.page_divisor.quotient(static_cast<uint32_t>(row))} * cache.page_size);
  const int64_t rest = span.len - row + in_page;  // keys from the page's first row on
  const auto filled = static_cast<int32_t>(rest < cache.page_size ? rest : cache.page_size);
  return {0, cache.page_size - filled + in_page, filled, kv_head, page};
}

}  // namespace flash3::device
