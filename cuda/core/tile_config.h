// The tile shape of each head-dim class: a small printable value, chosen in host code and instantiated by the kernels.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace flash3::core {

struct TileConfig {
  int32_t head_dim;    // columns the kernel is instantiated for; smaller head dims run in it with zero-filled columns
  int32_t block_m;     // query rows of a tile, 64 per consumer warpgroup
  int32_t block_n;     // keys of a block
  int32_t stages;      // K and V blocks in flight, each
  bool out_aliases_q;  // the output tile is staged in Q's shared memory, for want of room beside it
  bool exact_max;      // the softmax follows the running maximum in every block; see OnlineSoftmax for the other way
};

// Wide heads are bound by the tensor cores: looking for the maximum costs them no time, and the way around it
// registers.
// clang-format off
inline constexpr TileConfig kTileConfigs[] = {
    // head_dim, block_m, block_n, stages, out_aliases_q, exact_max
    {64, 192, 128, 2, false, false},
    {96, 128, 128, 2, false, false},
    {128, 128, 128, 2, false, false},
    {192, 128, 96, 2, true, true},
    {256, 128, 80, 2, true, true},
};
// clang-format on

inline constexpr int32_t kMaxHeadDim = 256;

// The smallest class that holds head dims d_qk and d_v; NULL when none does.
constexpr const TileConfig *tile_config(int32_t head_dim, int32_t head_dim_v) {
  const int32_t wider = head_dim > head_dim_v ? head_dim : head_dim_v;
  for (const TileConfig &config : kTileConfigs) {
    if (wider <= config.head_dim) return &config;
  }
  return nullptr;
}

}  // namespace flash3::core
