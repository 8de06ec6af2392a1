// The tile shapes of the forward kernels, and which of them a call gets: small printable values, chosen in host code
// and instantiated by the kernels.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/macros.h"
#include "core/mask.h"

namespace flash3::core {

struct TileConfig {
  int32_t head_dim;  // columns the kernel is instantiated for; smaller head dims run in it with zero-filled columns
  int32_t block_m;   // query rows of a tile, 64 per consumer warpgroup
  int32_t block_n;   // keys of a block
  int32_t stages;    // K and V blocks in flight, each
  int32_t q_stages;  // 2: Q of the next tile is loaded, and its first scores computed, while this tile ends
  bool exact_max;    // the softmax follows the running maximum in every block; see OnlineSoftmax for the other way
  // The costs that decide between the configs of a head dim, as measured on an H200: clocks of a tile, and of each of
  // its key blocks in addition.
  int32_t tile_clocks, block_clocks;
};

// Wide heads are bound by the tensor cores: looking for the maximum costs them no time, and the way around it
// registers.
// clang-format off
inline constexpr TileConfig kTileConfigs[] = {
    // head_dim, block_m, block_n, stages, q_stages, exact_max, tile_clocks, block_clocks
    {64, 192, 128, 4, 2, false, 5600, 2330},
    {64, 128, 128, 4, 2, false, 4900, 1750},
    {96, 128, 128, 2, 2, false, 0, 0},
    {128, 128, 128, 2, 2, false, 0, 0},
    {192, 128, 96, 2, 1, true, 0, 0},
    {256, 128, 80, 2, 1, true, 0, 0},
};
// clang-format on

inline constexpr int32_t kNumTileConfigs = sizeof(kTileConfigs) / sizeof(kTileConfigs[0]);
inline constexpr int32_t kMaxHeadDim = 256;

// The smallest class of head dims that holds d_qk and d_v, by its first config; NULL when none does.
constexpr const TileConfig *tile_config(int32_t head_dim, int32_t head_dim_v) {
  const int32_t wider = head_dim > head_dim_v ? head_dim : head_dim_v;
  for (const TileConfig &config : kTileConfigs) {
    if (wider <= config.head_dim) return &config;
  }
  return nullptr;
}

// What one head of one sequence costs, roughly. Long sequences are not counted tile by tile but taken as without mask,
// which makes less and less of a difference.
inline int64_t estimated_clocks(const TileConfig &config, const Mask &mask) {
  constexpr int64_t kMostCounted = 64;
  const int64_t tiles = (int64_t{mask.seqlen_q} + config.block_m - 1) / config.block_m;
  const int64_t all_blocks = (int64_t{mask.seqlen_k} + config.block_n - 1) / config.block_n;
  if (tiles > kMostCounted) return tiles * (config.tile_clocks + all_blocks * config.block_clocks);
  int64_t clocks = 0;
  for (int64_t first = 0; first < mask.seqlen_q; first += config.block_m) {
    const int64_t end = first + config.block_m < mask.seqlen_q ? first + config.block_m : mask.seqlen_q;
    const BlockRange range = block_range(mask, static_cast<int32_t>(first), static_cast<int32_t>(end), config.block_n);
    clocks += config.tile_clocks + int64_t{range.count()} * config.block_clocks;
  }
  return clocks;
}

// Among the configs of a class of head dims, the index of the one that costs a sequence of that mask least.
inline int32_t cheapest_config(int32_t class_head_dim, const Mask &mask) {
  int32_t best = -1;
  int64_t least = 0;
  for (int32_t i = 0; i < kNumTileConfigs; ++i) {
    if (kTileConfigs[i].head_dim != class_head_dim) continue;
    const int64_t clocks = estimated_clocks(kTileConfigs[i], mask);
    if (best >= 0 && clocks >= least) continue;
    best = i;
    least = clocks;
  }
  return best;
}

}  // namespace flash3::core
