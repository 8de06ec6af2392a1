// Everything that follows from the element type and the tile configuration of one instantiation of the kernel for few
// keys, and the shared memory it needs.
#pragma once

#include <cstdint>

#include "core/tile_config.h"
#include "device/tile_traits.cuh"

namespace flash3::device {

// Every consumer warpgroup has a tile of 64 rows of its own; what they share is K and V of a sequence and KV head.
template <class Element_, int kConfigIndex, bool kScoreMod_>
struct ResidentTraits {
  using Element = Element_;
  static constexpr bool kScoreMod = kScoreMod_;
  static constexpr bool kVarlen = false;
  static constexpr bool kCache = false;
  static constexpr bool kPaired = false;
  static constexpr bool kPieces = false;
  static constexpr core::TileConfig kConfig = core::kTileConfigs[kConfigIndex];
  static_assert(sizeof(Element) == 2, "16-bit inputs");
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kHeadDimV = kConfig.head_dim_v;

  static constexpr int kBlockM = kConfig.block_m;
  static constexpr int kBlockN = kConfig.block_n;  // all keys of a sequence
  static constexpr int kStages = kConfig.stages;   // sequences and KV heads whose K and V are there or on their way
  static constexpr int kQStages = 1;
  static constexpr int kStreams = kConfig.streams;
  static constexpr int kConsumers = 1;  // a tile
  static constexpr int kWarpgroups = kStreams;
  static constexpr int kThreads = 128 * (kStreams + 1);
  static constexpr uint32_t kKBytes = kBlockN * kHeadDim * 2;
  static constexpr uint32_t kVBytes = kBlockN * kHeadDimV * 2;
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters = 160;
  static_assert(kBlockM == 64 && kStreams == 3, "a warpgroup a tile; register budget for three");

  static constexpr int kSwizzleBytes = kHeadDim % 64 == 0 ? 128 : 64;
  static constexpr int kBoxCols = kSwizzleBytes / 2;
  static constexpr int kColBlocks = kHeadDim / kBoxCols;
  static constexpr int kColBlocksV = kHeadDimV / kBoxCols;
  static constexpr int kCtas = 1;
  static constexpr int kStagedRows = 64;
  static __device__ __forceinline__ int32_t first_column() { return 0; }

  static constexpr int kMostAddedUp = 0;
  using Job = LoadJob;

  struct Barriers {
    uint64_t q_full[kStreams], k_full[kStages], v_full[kStages];
    uint64_t q_empty[kStreams], k_empty[kStages], v_empty[kStages];
  };
  static constexpr int kFullBarriers = kStreams + 2 * kStages;
  static constexpr int kBarriers = 2 * kFullBarriers;
  static_assert(sizeof(Barriers) == 8 * kBarriers, "all of them");

  static constexpr int kTileSlots = 2;  // of a warpgroup: the tile that it stores, and the next one, whose Q is loaded
  struct SharedStorage {
    alignas(1024) Element q[kStreams][kBlockM * kHeadDim];
    alignas(1024) Element out[kStreams][kBlockM * kHeadDimV];
    alignas(1024) Element k[kStages][kBlockN * kHeadDim];
    alignas(1024) Element v[kStages][kBlockN * kHeadDimV];
    Barriers barriers;
    WorkTile tile[kStreams][kTileSlots];
  };
  static constexpr uint32_t kSharedBytes = sizeof(SharedStorage);
  static_assert(kSharedBytes <= 232448, "a block has 227 KB of shared memory");

  static __device__ __forceinline__ bool packed(const core::SeqSide &) { return false; }
  static __device__ __forceinline__ int64_t warpgroup_row(const WorkTile &tile, int) {
    return int64_t{tile.m_block} * kBlockM;
  }
  static __device__ __forceinline__ int64_t warp_row(const WorkTile &tile, int) {
    return warpgroup_row(tile, 0) + (threadIdx.x % 128) / 32 * 16;
  }
};

}  // namespace flash3::device
