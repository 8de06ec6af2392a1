// Everything that follows from the element type and the tile configuration of one instantiation of the kernel for few
// keys, and the shared memory it needs.
#pragma once

#include <cstdint>

#include "core/seqlen.h"
#include "core/tile_config.h"
#include "device/tile_traits.cuh"

namespace flash3::device {

// What shares K and V, as one warp finds it for the others: tiles of a sequence, of query heads that have the same
// keys.
struct Unit {
  core::SeqSpan q;
  int64_t k_start;
  int32_t k_len, k_entry;  // see TileLoads::Keys
  int32_t batch, head;     // the first head
  int32_t m_blocks;        // of each head
  int32_t first, tiles;    // of those of its heads, one head after the other
  int32_t key_blocks = 0;  // none where there are no tiles
  bool valid = false;      // no: no unit is left
};

// A tile, and what its stream does with the key blocks, which come in the order of units.
struct ResidentTile : WorkTile {
  int32_t skipped;     // so many it gives back unread before this tile: of units in which it has no tile
  int32_t key_blocks;  // of the tile's unit, behind those
  bool last;           // gives those back: they are not kept for another tile
};

// Every consumer warpgroup has a tile of 64 rows of its own; what they share is K and V of a sequence and KV head.
// kVarlen: lengths come from device memory.
template <class Element_, int kConfigIndex, bool kScoreMod_, bool kVarlen_>
struct ResidentTraits {
  using Element = Element_;
  static constexpr bool kScoreMod = kScoreMod_;
  static constexpr bool kVarlen = kVarlen_;
  static constexpr bool kCache = false;
  static constexpr bool kPaired = false;
  static constexpr bool kPieces = false;
  static constexpr core::TileConfig kConfig = core::kTileConfigs[kConfigIndex];
  static_assert(sizeof(Element) == 2, "16-bit inputs");
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kHeadDimV = kConfig.head_dim_v;

  static constexpr int kBlockM = kConfig.block_m;
  static constexpr int kBlockN = kConfig.block_n;
  static constexpr int kKeptBlocks = kConfig.most_keys / kBlockN;  // key blocks of a unit that stay for all its tiles
  static constexpr int kStages = kConfig.stages;                   // key blocks that are there or on their way
  static constexpr int kQStages = 1;
  static constexpr int kStreams = kConfig.streams;
  static constexpr int kConsumers = 1;  // a tile
  static constexpr int kWarpgroups = kStreams;
  static constexpr int kThreads = 128 * (kStreams + 1);
  static constexpr uint32_t kKBytes = kBlockN * kHeadDim * 2;
  static constexpr uint32_t kVBytes = kBlockN * kHeadDimV * 2;
  static constexpr int kProducerRegisters = 56;
  static constexpr int kConsumerRegisters = 152;
  static_assert(kBlockM == 64 && kStreams == 3, "a warpgroup a tile; register budget for three");
  static_assert(kKeptBlocks == 2 && kStages >= kKeptBlocks, "one or two are multiplied at once");

  static constexpr int kSwizzleBytes = kHeadDim % 64 == 0 ? 128 : 64;
  static constexpr int kBoxCols = kSwizzleBytes / 2;
  static constexpr int kColBlocks = kHeadDim / kBoxCols;
  static constexpr int kColBlocksV = kHeadDimV / kBoxCols;
  static constexpr int kCtas = 1;
  static constexpr int kStagedRows = 64;
  static __device__ __forceinline__ int32_t first_column() { return 0; }

  static constexpr int kMostAddedUp = 0;
  using Job = LoadJob;

  static constexpr int kUnitSlots = 4;  // units that have been found and not been done with
  struct Barriers {
    uint64_t q_full[kStreams], k_full[kStages], v_full[kStages], unit_full[kUnitSlots];
    uint64_t q_empty[kStreams], unit_empty[kUnitSlots], k_empty[kStages], v_empty[kStages];
  };
  static constexpr int kFullBarriers = kStreams + 2 * kStages + kUnitSlots;
  static constexpr int kBarriers = 2 * kFullBarriers;
  static_assert(sizeof(Barriers) == 8 * kBarriers, "all of them");
  // Those of the first loads.
  static constexpr bool is_first(int i) {
    const int k = i - kStreams;
    const int v = k - kStages;
    return i < kStreams || (k >= 0 && k < kKeptBlocks) || (v >= 0 && v < kKeptBlocks);
  }
  // Arrivals that complete barrier i: Q is given back by all threads of a stream, since they have read its tile, a unit
  // by all of the warps that load Q, and K and V by a lane of every warp of all streams.
  static constexpr int arrivals(int i) {
    if (i < kFullBarriers) return 1;
    if (i < kFullBarriers + kStreams) return 128;
    return i < kFullBarriers + kStreams + kUnitSlots ? 32 * kStreams : 4 * kStreams;
  }

  static constexpr int kTileSlots = 2;  // of a warpgroup: the tile that it stores, and the next one, whose Q is loaded
  struct SharedStorage {
    alignas(1024) Element q[kStreams][kBlockM * kHeadDim];
    alignas(1024) Element out[kStreams][kBlockM * kHeadDimV];
    alignas(1024) Element k[kStages][kBlockN * kHeadDim];
    alignas(1024) Element v[kStages][kBlockN * kHeadDimV];
    Barriers barriers;
    ResidentTile tile[kStreams][kTileSlots];
    Unit unit[kUnitSlots];
  };
  static constexpr uint32_t kSharedBytes = sizeof(SharedStorage);
  static_assert(kSharedBytes <= 232448, "a block has 227 KB of shared memory");

  static __device__ __forceinline__ bool packed(const core::SeqSide &side) {
    return kVarlen && side.cu_seqlens != nullptr;
  }
  static __device__ __forceinline__ int64_t warpgroup_row(const WorkTile &tile, int) {
    return int64_t{tile.m_block} * kBlockM;
  }
  static __device__ __forceinline__ int64_t warp_row(const WorkTile &tile, int) {
    return warpgroup_row(tile, 0) + (threadIdx.x % 128) / 32 * 16;
  }
};

}  // namespace flash3::device
