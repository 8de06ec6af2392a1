// The start of a call of plain decoding: which keys a part has takes all lengths, divisions and barriers, some 2 us in
// which the memory has nothing to do.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/key_boxes.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_side.cuh"

namespace flash3::device {

// Of a key block whose rows are copied one by one: those of half of the block, 128 bytes at a time.
template <class Traits>
__device__ __forceinline__ void prefetch_rows(const SplitArgs &args, const core::KvCache &cache,
                                              const core::KeySpan &span, int32_t kv_head, int64_t first_key,
                                              SplitSide side) {
  using Element = typename Traits::Element;
  const TensorRows &t = tensor_of(args, side);
  const int32_t cols = head_dim_of(args, side);
#pragma unroll
  for (int i = 0; i < Traits::kCopyRows / 32; ++i) {
    const int64_t key = first_key + 32 * i + threadIdx.x % 32;
    if (key >= span.len) break;
    const core::RowPlace at = cache.place(span, span.first_row + key);
    const Element *const row = row_of<Element>(t, at.entry, at.row, kv_head);
    for (int32_t col = 0; col < cols; col += 64) ptx::prefetch(row + col);
  }
}

// Brings the block of K or V to L2 that a part begins with if tiles are cut alike, which follows from its number. If
// they are not, the block is another part's. Nothing is read that the call does not need: a sequence that ends before
// has no such block. By the warps that will load it.
template <class Traits>
__device__ __forceinline__ void prefetch_first_block(const SplitArgs &args, const core::SplitSchedule &schedule,
                                                     const core::SplitPartId &part, SplitSide side, int half) {
  const core::KvCache &cache = schedule.k;
  const bool boxes = args.key_loads == KeyLoads::kTma;
  int32_t b, kv_head, n;
  if ((boxes && half > 0) || !schedule.first_even_block(part, &b, &kv_head, &n)) return;
  const core::KeySpan span = cache.span(b);
  const int64_t row = int64_t{n} * Traits::kBlockN;
  if (!boxes) return prefetch_rows<Traits>(args, cache, span, kv_head, row + half * Traits::kCopyRows, side);
  if (row >= span.len || !ptx::elect_one()) return;
  ptx::TmaCoord box = cache.page_table == nullptr ? key_box(cache, span, kv_head, static_cast<int32_t>(row))
                                                  : key_box_of_page(cache, span, kv_head, row,
                                                                    static_cast<int32_t>(cache.place(span, row).entry));
  const int32_t cols = head_dim_of(args, side);
#pragma unroll
  for (int c = 0; c < Traits::kColBlocks; ++c) {
    box.col = c * Traits::kBoxCols;
    if (c == 0 || box.col < cols) ptx::tma_prefetch(map_of(args, side), box);
  }
}

}  // namespace flash3::device
