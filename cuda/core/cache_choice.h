// Which kernel computes a call with a cache: the split-KV kernel, which shares out the keys of a tile of few packed
// rows, or the forward kernel, whose tiles of one head take the tensor cores further. By what either is estimated to
// take, from the shapes of the call alone: lengths in device memory may be shorter, which changes both alike.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/mask.h"
#include "core/split_schedule.h"
#include "core/tile_config.h"
#include "flash3.h"

namespace flash3::core {

// Clocks of a multiprocessor as measured on an H200: for 64 keys of a tile of the split-KV kernel, and for the tile in
// addition.
struct SplitCosts {
  int32_t head_dim;
  int32_t clocks_of_64_keys, tile_clocks;
};

inline constexpr SplitCosts kSplitCosts[] = {
    {64, 1000, 2000}, {96, 1300, 2000}, {128, 1475, 2000}, {192, 2400, 3000}, {256, 3000, 3000},
};

// Before its first key block and for the merging behind.
inline constexpr int64_t kSplitStartClocks = 12000;

// The choice is the same on every GPU, so that the result is, and the workspace.
inline constexpr int64_t kUsualMultiprocessors = 132;

// Of a call with a cache and num_splits 0 or 1.
inline bool forward_kernel_is_faster(const flash3_params &p) {
  const int64_t group = p.nheads / p.nheads_k;
  const bool packed_q = p.cu_seqlens_q != nullptr;
  const int64_t rows = packed_q ? (p.total_q + p.batch - 1) / p.batch : p.seqlen_q;  // on average
  if (rows * group <= SplitSchedule::kBlockM) return false;
  const int64_t keys = p.page_table != nullptr ? int64_t{p.max_pages} * p.page_size : p.seqlen_k;
  const TileConfig *const found = cache_config(p.head_dim, p.head_dim_v);
  if (found == nullptr) return false;  // neither has a kernel
  const TileConfig &config = *found;
  const Mask mask{Window::make(p.window_left, p.window_right), static_cast<int32_t>(rows), static_cast<int32_t>(keys)};

  const int64_t tiles_of_head = ceil_div(mask.seqlen_q, config.block_m);
  const int64_t tiles = tiles_of_head * p.nheads * p.batch;
  const int64_t clocks = estimated_clocks(config, mask) / tiles_of_head;  // of a tile, on average
  const int64_t rounds = (tiles + kUsualMultiprocessors - 1) / kUsualMultiprocessors;

  const SplitCosts *split = kSplitCosts;
  while (split->head_dim < config.head_dim) ++split;
  const int64_t key_clocks = clocks > config.tile_clocks ? clocks - config.tile_clocks : 0;
  const int64_t split_clocks =
      split->tile_clocks + key_clocks * config.block_n / config.block_clocks * split->clocks_of_64_keys / 64;
  const int64_t split_tiles =
      (rows * group + SplitSchedule::kBlockM - 1) / SplitSchedule::kBlockM * p.nheads_k * p.batch;
  const int64_t shared = split_tiles * split_clocks / kUsualMultiprocessors;
  const int64_t whole = shared > split_clocks ? shared : split_clocks;  // no tile in pieces
  return rounds * clocks < (p.num_splits == 1 ? whole : shared + kSplitStartClocks);
}

}  // namespace flash3::core
