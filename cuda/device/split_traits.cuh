// Everything that follows from the element type and the config of one instantiation of the split-KV kernel, and the
// shared memory it needs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/split_config.h"
#include "device/split_parts.cuh"
#include "device/swizzle.cuh"

namespace flash3::device {

// The schedule with what is the same in all calls of a kernel known to the compiler.
template <class Traits>
__device__ __forceinline__ core::SplitSchedule known_schedule(core::SplitSchedule s) {
  s.block_n = Traits::kBlockN;
  s.even = false;
  if constexpr (Traits::kPlain) {
    s.q.seqused = nullptr;
    if constexpr (!Traits::kPacked) s.q.cu_seqlens = nullptr;
    s.k.filled.cu_seqlens = s.k.appended.cu_seqlens = s.k.appended.seqused = s.k.leftpad = nullptr;
    s.window.left = -1;
    if constexpr (Traits::kSeesAllKeys) s.window.right = -1;
    s.num_splits = 0;
    s.one_tile = true;
  }
  s.packs_few = Traits::kPacked;
  if constexpr (!Traits::kMergesInClusters) s.cluster_cuts.divisor = 1;
  return s;
}

// Which calls a kernel is for: all, those that core::is_plain_decoding, those of them that core::sees_all_keys, or
// those of these that are core::computed_by_warps; those of the last two kinds that are core::appends_itself; and the
// same as the second, third (core::tiles_see_all_keys) and fourth kind with packed queries.
enum class SplitCalls {
  kAll,
  kPlain,
  kSeeAllKeys,
  kByWarps,
  kAppend,
  kAppendByWarps,
  kPacked,
  kPackedSeeAllKeys,
  kPackedByWarps
};

template <class Element_, int kConfigIndex, SplitCalls kCalls>
struct SplitTraits {
  using Element = Element_;
  static constexpr bool kPlain = kCalls != SplitCalls::kAll;
  static constexpr bool kAppends = kCalls == SplitCalls::kAppend || kCalls == SplitCalls::kAppendByWarps;
  static constexpr bool kPacked =
      kCalls == SplitCalls::kPacked || kCalls == SplitCalls::kPackedSeeAllKeys || kCalls == SplitCalls::kPackedByWarps;
  static constexpr bool kByWarps =
      kCalls == SplitCalls::kByWarps || kCalls == SplitCalls::kAppendByWarps || kCalls == SplitCalls::kPackedByWarps;
  static constexpr bool kSeesAllKeys =
      kCalls == SplitCalls::kSeeAllKeys || kCalls == SplitCalls::kPackedSeeAllKeys || kByWarps || kAppends;
  static constexpr bool kWholeTiles = false;                                    // see PartFinder
  static constexpr bool kMergesInClusters = kPlain && (kByWarps || !kAppends);  // see core::merges_in_clusters
  static constexpr core::SplitConfig kConfig = core::kSplitConfigs[kConfigIndex];
  static constexpr int kHeadDim = kConfig.head_dim;
  static constexpr int kBlockM = core::SplitSchedule::kBlockM;
  static constexpr int kBlockN = kConfig.block_n;
  static constexpr int kCopyRows = kBlockN / 2;  // of a block, that one of two warps copies
  static constexpr int kStages = std::max({kConfig.boxes.stages, kConfig.rows.stages, kConfig.dense_for_warps.stages});
  // args.stages says which
  static constexpr bool kStagesVary =
      kConfig.boxes.stages != kConfig.rows.stages || kConfig.boxes.stages != kConfig.dense_for_warps.stages;
  static_assert(kBlockM == 64, "the tile is that of one warpgroup");
  static_assert(kBlockN % 64 == 0 && kBlockN <= 128, "a lane finds the places of whole rows");

  // A consumer warpgroup, and one of which two warps each copy K and V, or one of them sets the copy engine to it. That
  // one leaves registers to the first, unless that computes by warps, which takes fewer. Both leave some to the merging
  // kernel, whose blocks wait beside this one's.
  static constexpr int kConsumerThreads = 128;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kLaunchRegisters = kHeadDim <= 128 ? 128 : 176;
  static constexpr int kProducerRegisters = kHeadDim <= 128 ? 80 : 104;
  static constexpr int kConsumerRegisters = 2 * kLaunchRegisters - kProducerRegisters;

  static constexpr int kSwizzleBytes = kHeadDim % 64 == 0 ? 128 : 64;
  static constexpr int kBoxCols = kSwizzleBytes / 2;
  static constexpr int kColBlocks = kHeadDim / kBoxCols;
  static_assert(kHeadDim % kBoxCols == 0, "whole column blocks");

  static constexpr int kExchangeRows = 7 * core::kFewRows;  // see ClusterExchange

  struct Barriers {
    uint64_t full[2][kStages], empty[2][kStages];  // of K, of V
    uint64_t exchange;                             // see ClusterExchange
  };

  struct SharedStorage {
    alignas(1024) Element q[2][kBlockM * kHeadDim];  // of this piece and of the next one
    alignas(16) Element angles[2][2][kHeadDim / 2];  // see load_angles; cosines, sines
    Barriers barriers;
    // See PartFinder and PlainPartFinder.
    int32_t warp_costs[kThreads / 32], warp_largest[kThreads / 32];
    bool warp_surplus[kThreads / 32];
    int32_t costs[kThreads];
    SplitPart part;
    uint32_t poison[kBlockN / 32];                             // see Poison; a bit a key
    float2 exchange_rows[kExchangeRows];                       // see ClusterExchange
    float2 warp_rows[kConsumerThreads / 32][core::kWarpRows];  // see WarpSums
    alignas(1024) Element kv[kStages][2][kBlockN * kHeadDim];  // K, V; at the end, since not all stages may be there
  };
  static constexpr uint32_t shared_bytes(int stages) {
    return sizeof(SharedStorage) - (kStages - stages) * 2 * kBlockN * kHeadDim * sizeof(Element);
  }
  // That a thread block asks for: more than half of what a multiprocessor has where it is to be the only one there.
  static constexpr uint32_t kSharedBytesOfSm = 233472, kSharedBytesOfSystem = 1024;
  static constexpr uint32_t launch_bytes(const core::SplitFlight &f) {
    return std::max(shared_bytes(f.stages), f.blocks_per_sm == 1 ? kSharedBytesOfSm / 2 : 0);
  }
  static constexpr bool fits(const core::SplitFlight &f) {
    return f.blocks_per_sm * (launch_bytes(f) + kSharedBytesOfSystem) <= kSharedBytesOfSm;
  }
  static_assert(fits(kConfig.boxes) && fits(kConfig.rows) && fits(kConfig.dense_for_warps),
                "a multiprocessor has 228 KB of shared memory");

  // Byte offset of 16 bytes in a tile of kRows rows, as the tensor maps lay it out; col: a multiple of 8.
  template <int kRows>
  static __device__ __forceinline__ uint32_t offset(int row, int col) {
    return swizzled_offset<kSwizzleBytes, kRows>(row, col);
  }
};

}  // namespace flash3::device
