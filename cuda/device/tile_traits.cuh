// Everything that follows from the element type and the tile configuration of one kernel instantiation, and the shared
// memory it needs.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/seqlen.h"
#include "core/tile_config.h"

namespace flash3::device {

// A tile as the producer hands it to the consumers. They leave it in shared memory and read what they need where they
// need it, since registers are short in the main loop.
struct alignas(16) WorkTile {
  core::BlockRange range;
  int32_t m_block, head, batch, valid;
  int32_t seqlen_q, seqlen_k;
  int32_t q_start, q_end;  // first row of the sequence in q and out, and the row behind its last
};

// kScoreMod: scores go through softcap or ALiBi, or have a scale that is not positive. In a kernel of its own, so that
// the others have neither the registers nor the code for it.
// kVarlen: lengths come from device memory (cu_seqlens, seqused).
template <class Element_, int kConfigIndex, bool kScoreMod_, bool kVarlen_>
struct TileTraits {
  using Element = Element_;
  static constexpr bool kScoreMod = kScoreMod_;
  static constexpr bool kVarlen = kVarlen_;
  static constexpr core::TileConfig kConfig = core::kTileConfigs[kConfigIndex];
  static constexpr int kHeadDim = kConfig.head_dim;
  static_assert(sizeof(Element) == 2, "16-bit inputs");

  static constexpr int kBlockM = kConfig.block_m;
  static constexpr int kBlockN = kConfig.block_n;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kQStages = kConfig.q_stages;
  // Whether a tile begins while the one before ends. Where there is no room for a second Q, there is none for the
  // output either: that is staged in the place of V then, and the next tile's V has to wait.
  static constexpr bool kOverlapsTiles = kQStages > 1;
  static constexpr int kTileSlots = 4;  // the tile that ends, the one that begins, and those that the producer found
  static constexpr bool kExactMax = kConfig.exact_max;
  static_assert(kBlockM % 64 == 0, "a consumer warpgroup owns 64 rows");
  static_assert(kBlockN % 16 == 0 && kBlockN <= 256, "P * V takes 16 keys a step, Q * K^T at most 256 keys");

  static constexpr int kConsumers = kBlockM / 64;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  // 64 K registers, handed from the producer to the consumers in steps of 8.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static_assert(kConsumers == 2 || kConsumers == 3, "register budgets exist for 2 and 3 consumer warpgroups");

  // Columns of one TMA box and of one swizzle pattern.
  static constexpr int kSwizzleBytes = kHeadDim % 64 == 0 ? 128 : 64;
  static constexpr int kBoxCols = kSwizzleBytes / 2;
  static constexpr int kColBlocks = kHeadDim / kBoxCols;
  static_assert(kHeadDim % kBoxCols == 0, "whole column blocks");

  static constexpr uint32_t kQBytes = kBlockM * kHeadDim * 2;
  static constexpr uint32_t kKBytes = kBlockN * kHeadDim * 2;
  static constexpr uint32_t kVBytes = kBlockN * kHeadDim * 2;

  struct SharedStorage {
    alignas(1024) Element q[kQStages][kBlockM * kHeadDim];
    alignas(1024) Element k[kStages][kBlockN * kHeadDim];
    alignas(1024) Element v[kStages][kBlockN * kHeadDim];
    alignas(1024) Element own_out[kOverlapsTiles ? kBlockM * kHeadDim : 1];
    uint64_t q_full[kQStages], q_empty[kQStages];
    uint64_t k_full[kStages], k_empty[kStages];
    uint64_t v_full[kStages], v_empty[kStages];
    uint64_t tile_full[kTileSlots], tile_empty[kTileSlots];
    uint64_t out_empty;  // where the output is staged in the place of V
    WorkTile tile[kTileSlots];

    __device__ __forceinline__ Element *out() { return kOverlapsTiles ? own_out : v[0]; }
  };
  // Whether that side of the call is packed: without a batch dimension.
  static __device__ __forceinline__ bool packed(const core::SeqSide &side) {
    return kVarlen && side.cu_seqlens != nullptr;
  }
  // First row of a consumer warpgroup, and of the calling thread's warp in it, in the sequence. 64 bits, since a tile
  // may end behind row 2^31.
  static __device__ __forceinline__ int64_t warpgroup_row(const WorkTile &tile, int warpgroup) {
    return int64_t{tile.m_block} * kBlockM + warpgroup * 64;
  }
  static __device__ __forceinline__ int64_t warp_row(const WorkTile &tile, int warpgroup) {
    return warpgroup_row(tile, warpgroup) + (threadIdx.x % 128) / 32 * 16;
  }
  static_assert(kOverlapsTiles || kStages * kBlockN >= kBlockM, "room for the output");
  static_assert(sizeof(SharedStorage) <= 232448, "a block has 227 KB of shared memory");
};

}  // namespace flash3::device
