// Everything that follows from the element type and the tile configuration of a kernel for wide heads, and the shared
// memory it needs.
#pragma once

#include <cstdint>

#include "core/tile_config.h"
#include "device/cluster.cuh"
#include "device/ptx.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// What a tile is, its loads, masks and output are as in the other kernels (TileTraits): a thread block has kHeadDim of
// the columns of Q, K, V and the output there.
template <class Element_, int kConfigIndex, bool kScoreMod_, bool kVarlen_>
struct WideTraits {
  using Element = Element_;
  static constexpr bool kScoreMod = kScoreMod_;
  static constexpr bool kVarlen = kVarlen_;
  static constexpr bool kCache = false;
  static constexpr core::TileConfig kConfig = core::kTileConfigs[kConfigIndex];
  static_assert(sizeof(Element) == 2, "16-bit inputs");
  static_assert(kConfig.streams == 1 && kConfig.blocks_per_sm == 1 && kConfig.q_stages == 1, "one tile at a time");

  static constexpr int kCtas = 2;  // thread blocks of a cluster, each with its share of the columns
  static constexpr bool kPaired = false;
  static constexpr bool kPieces = false;
  static constexpr int kHeadDim = kConfig.head_dim / kCtas;
  static constexpr int kHeadDimV = kConfig.head_dim_v / kCtas;
  static __device__ __forceinline__ int32_t first_column() {
    return static_cast<int32_t>(ptx::cluster_rank()) * kHeadDim;
  }

  static constexpr int kBlockM = kConfig.block_m;
  static constexpr int kBlockN = kConfig.block_n;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kQStages = 1;
  static constexpr bool kExactMax = kConfig.exact_max;
  static_assert(kExactMax, "the other way needs registers that are not there");
  static constexpr int kStreams = 1;
  static constexpr int kConsumers = kBlockM / 64;
  static constexpr int kWarpgroups = kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = 240;
  static_assert(kConsumers == 2, "register budget: two consumer warpgroups");

  static constexpr int kSwizzleBytes = 128;
  static constexpr int kBoxCols = kSwizzleBytes / 2;
  static constexpr int kColBlocks = kHeadDim / kBoxCols;
  static constexpr int kColBlocksV = kColBlocks;
  static_assert(kHeadDimV == kHeadDim && kHeadDim % kBoxCols == 0 && kHeadDim <= 256,
                "whole column blocks, one product for P * V");

  static constexpr uint32_t kKBytes = kBlockN * kHeadDim * 2;
  static constexpr uint32_t kVBytes = kBlockN * kHeadDim * 2;
  static constexpr int kStagedRows = kBlockM;  // the output is staged in the place of the tile's own Q

  static constexpr int kMostAddedUp = 0;
  using Job = LoadJob;

  struct Barriers {
    uint64_t q_full[kQStages], k_full[kStages], v_full[kStages];
    uint64_t q_empty[kQStages], k_empty[kStages], v_empty[kStages];  // an arrival a warp
    uint64_t scores_full[kConsumers];                                // by the stores of the other block
    uint64_t scores_empty[kConsumers];  // there, an arrival a warp: what this block stored has been read
  };
  static constexpr int kFirstEmpty = kQStages + 2 * kStages;
  static constexpr int kScoresFull = kFirstEmpty + kQStages + 2 * kStages;
  static constexpr int kScoresEmpty = kScoresFull + kConsumers;
  static constexpr int kBarriers = kScoresEmpty + kConsumers;
  static_assert(sizeof(Barriers) == 8 * kBarriers && kBarriers <= 32, "a barrier a lane");

  struct SharedStorage {
    alignas(1024) Element q[kQStages][kBlockM * kHeadDim];
    alignas(1024) Element k[kStages][kBlockN * kHeadDim];
    alignas(1024) Element v[kStages][kBlockN * kHeadDim];
    alignas(1024) float4 scores[kConsumers][kBlockN / 8][128];  // of the other block, [four of a thread's][thread]
    Barriers barriers;
    WorkTile tile;
    Job job;
  };
  static constexpr uint32_t kSharedBytes = sizeof(SharedStorage);
  static_assert(kSharedBytes <= 232448, "a block has 227 KB of shared memory");

  static __device__ __forceinline__ bool packed(const core::SeqSide &side) {
    return kVarlen && side.cu_seqlens != nullptr;
  }
  static __device__ __forceinline__ int64_t warpgroup_row(const WorkTile &tile, int warpgroup) {
    return int64_t{tile.m_block} * kBlockM + warpgroup * 64;
  }
  static __device__ __forceinline__ int64_t warp_row(const WorkTile &tile, int warpgroup) {
    return warpgroup_row(tile, warpgroup) + (threadIdx.x % 128) / 32 * 16;
  }
};

}  // namespace flash3::device
