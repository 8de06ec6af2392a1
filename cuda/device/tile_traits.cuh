// Everything that follows from the element type and the tile configuration of one kernel instantiation, and the shared
// memory it needs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/block_range.h"
#include "core/seqlen.h"
#include "core/tile_config.h"
#include "device/softmax.cuh"
#include "device/turns.cuh"

namespace flash3::device {

// A tile as the producer hands it to the consumers and the warp that stores. They leave it in shared memory and read
// what they need where they need it, since registers are short in the main loop.
struct alignas(16) WorkTile {
  core::BlockRange range;
  int32_t m_block, head, batch;
  int32_t valid;  // 0: no tile is left; otherwise 1 + the number of the piece
  int32_t seqlen_q, seqlen_k;
  int32_t q_start, q_end;  // first row of the sequence in q and out, and the row behind its last
  core::TileMask mask;     // of published tiles
};

// What the loads of a tile need to know, as TMA coordinates.
struct LoadJob {
  bool valid = false;  // no: no tile is left
  core::BlockRange range = {0, 0, 0, 0};
  int32_t q_row, q_end, head, batch_q;
  int32_t k_row, k_end, kv_head, batch_k;  // k_row: of key 0
};

// kScoreMod: scores go through softcap or ALiBi, or have a scale that is not positive. In a kernel of its own, so that
// the others have neither the registers nor the code for it.
// kVarlen: lengths come from device memory (cu_seqlens, seqused).
// kCache: so do the places of K and V (FwdArgs::cache), and pages may be too small for the copy engine. It would cost
// the other kernels registers of the producer and a branch at every key block.
// kPaired: two thread blocks of a cluster have neighbouring tiles of a head, which see the same keys; each of them
// loads half of the column blocks of K and V for both. For calls without a mask.
// kPieces: of a tile's keys each thread block computes a piece, whose result is a partial one.
// kCapped: of what kScoreMod allows there is a softcap, and nothing else: what the compiler makes of one loop of two
// depends on the other.
template <class Element_, int kConfigIndex, bool kScoreMod_, bool kVarlen_, bool kCache_ = false, bool kPaired_ = false,
          bool kPieces_ = false, bool kCapped_ = false>
struct TileTraits {
  using Element = Element_;
  static constexpr bool kScoreMod = kScoreMod_;
  static constexpr bool kVarlen = kVarlen_;
  static constexpr bool kCache = kCache_;
  static constexpr bool kPaired = kPaired_;
  static constexpr bool kPieces = kPieces_;
  static constexpr bool kCapped = kCapped_;
  static_assert(kVarlen || !kCache, "a cache has lengths of its own");
  static_assert(!kPaired || !(kVarlen || kCache || kScoreMod), "both tiles of a pair have the same key blocks");
  static constexpr core::TileConfig kConfig =
      kCache ? core::kCacheConfigs[kConfigIndex] : core::kTileConfigs[kConfigIndex];
  static constexpr int kHeadDim = kConfig.head_dim;     // columns of Q and K
  static constexpr int kHeadDimV = kConfig.head_dim_v;  // columns of V and the output
  static_assert(sizeof(Element) == 2, "16-bit inputs");

  static constexpr int kBlockM = kConfig.block_m;
  static constexpr int kBlockN = kConfig.block_n;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kQStages = kConfig.q_stages;
  // ALiBi and softcap in one kernel take the registers that the others have for it.
  static constexpr int kKeptSteps = kScoreMod && !kCapped ? 0 : kConfig.kept_steps;
  // Blocks of 64 keys, where a tile has another one beside it, or four warpgroups.
  static constexpr bool kSmallBlocks = kHeadDim == 64 && kBlockN == 64 && !kConfig.is_short();
  // For exponentials of which it is known beforehand what they are relative to; as measured.
  // By row the products that run at the same time lose less to it; but as measured pairs of tiles and tiles of 64 rows
  // at d 128, and packed calls at d 96, are quicker without.
  static constexpr bool kWholeRows = kHeadDim == 128 && !kPaired && kBlockM > 64;
  static constexpr bool kTurnsByRow = kWholeRows || kHeadDim == 64 || (kHeadDim == 96 && kBlockN == 96 && !kVarlen);
  using Turn = Turns<kWholeRows ? 32 : kBlockN == 96 ? 24 : 16, kTurnsByRow>;
  // Whether a warp that sees nothing of the first block of its warpgroup leaves its softmax out. Where kTrims, such a
  // block is rare; but without this the loops of these tiles spill registers, and read references for each score.
  static constexpr bool kSkips = kSmallBlocks;
  // Whether the consumers multiply Q by core::MonicSoftcap::q_factor. float16 has no room for it: small numbers would
  // lose bits.
  static constexpr bool kScalesQ = kCapped && std::is_same_v<Element, cutlass::bfloat16_t>;
  // Whether the main loop tells the compiler that the place of K and V in their rings is the same in all lanes. It
  // mostly finds that out by itself. Pairs lost 8 % where tiles are short, and nothing elsewhere; where there is a loop
  // whose first block comes before it, as for that polynomial, each product of the others took two moves.
  static constexpr bool kKnownKeys = (kPaired && kQStages > 1) || kScalesQ;
  // The kernel for short sequences, or the warp-specialised one.
  static constexpr bool kIsShort = kConfig.is_short();
  // Whether a tile begins while the one before ends. Where the warp-specialised kernel has no room for a second Q,
  // there is none for the output either: that is staged in the place of V then, and the next tile's V has to wait.
  static constexpr bool kOverlapsTiles = kQStages > 1;
  static constexpr bool kStagesInV = !kIsShort && !kOverlapsTiles;
  static constexpr int kTileSlots = 4;  // the tile that ends, the one that begins, and those that the producer found
  static constexpr bool kExactMax = kConfig.exact_max;
  // Where lengths come from device memory, to find out what a tile is takes several accesses in a row: a warp of its
  // own does it.
  static constexpr bool kScouts = kVarlen && !kCache && !kIsShort;
  // Packed sequences whose lengths a scout adds up itself; two streams have no memory for more.
  static constexpr int kMostAddedUp = !kScouts ? 0 : kConfig.streams > 1 ? 64 : core::kMostAddedUp;
  static_assert(kBlockM % 64 == 0, "a consumer warpgroup owns 64 rows");
  static_assert(kBlockN % 16 == 0 && kBlockN <= 256, "P * V takes 16 keys a step, Q * K^T at most 256 keys");
  static_assert(!kCache || (kConfig.streams == 1 && !kIsShort), "its producer works for one stream");

  // A stream is what works on one tile: a producer warp, kConsumers warpgroups, a warp that stores where there is one,
  // and a SharedStorage. The producer warps, and those that store, are of one warpgroup.
  static constexpr int kStreams = kConfig.streams;
  static constexpr int kConsumers = kBlockM / 64;
  static constexpr int kWarpgroups = kConsumers * kStreams;
  // Whether a warpgroup leaves out blocks at the end of a tile that none of its rows sees.
  static constexpr bool kTrims = kConfig.trims() && !kCache && !kPaired && !kPieces;
  // Whether warpgroups hand the tensor cores on to each other. The two of a stream beside another one are quicker
  // without.
  static constexpr bool kTakesTurns = kStreams == 1;
  static constexpr int kBlocksPerSm = kConfig.blocks_per_sm;
  static constexpr int kThreads = 128 * (kWarpgroups + (kIsShort ? 0 : 1));
  // 64 K registers, handed from the producer to the consumers in steps of 8. That of a cache keeps more for itself.
  static constexpr int kProducerRegisters = kWarpgroups == 1 ? 128 : kCache ? 56 : kWarpgroups == 2 ? 40 : 32;
  // Of the caches' consumers some have fewer than there are: with all of them the compiler has other ideas, whose loop
  // reads more registers than the products leave time for. As measured (docs/performance.md,
  // "What a producer's warps have time for").
  static constexpr int kRegistersLeft = !kCache || kWarpgroups == 1 ? 0
                                        : kScoreMod                 ? 8
                                        : kHeadDim == 96            ? 48
                                        : kHeadDim == 128           ? 16
                                                                    : 8;
  static constexpr int kConsumerRegisters = (kWarpgroups <= 2 ? 232 : kWarpgroups == 3 ? 160 : 112) - kRegistersLeft;
  static_assert(kWarpgroups <= 4, "register budgets: up to 4 consumer warpgroups");
  // Whether softcap and ALiBi, too, are taken without the maximum where that can be.
  static constexpr bool kDirectScores = kScoreMod && kConfig.takes_modified_scores_directly();
  // Whether a warp beside the producer stores what the consumers have staged (Storer), and, where there is memory for
  // it, the LSE. Tiles of 64 rows are for calls of few tiles, which gain nothing by it and have more code to wait for;
  // and where the output is staged in the place of V, the next V would wait for one more warp.
  static constexpr bool kStores = kOverlapsTiles && !kCache && !(kScouts && kStreams > 1) && kBlockM > 64;
  static constexpr bool kStoresLse = kStores && kStreams == 1;
  // Whether there is another kernel for nothing but a softcap.
  static constexpr bool kHasCapped = kScoreMod && !kCache && kConfig.has_capped_kernel();
  static_assert(!kCapped || kHasCapped, "for the loops in which scores are taken directly");
  static_assert(!kScalesQ || kTakesTurns, "a turn tells that all of Q has been multiplied");
  // Of DirectScores. Where softcaps have a kernel of their own, the others need not; and at d 64 the loop of ALiBi, for
  // three warpgroups, loses 3 % by it.
  static constexpr bool kAsksAgain = kCapped || (!kHasCapped && kConsumers < 3);
  static_assert(!kStores || !kPieces, "partial results are stored by the consumers");
  // Threads of the producer's warpgroup that read the tiles, too.
  static constexpr int kFollowers = (kScouts ? 32 : 0) + (kStores ? 32 : 0);
  // Rings find their place by the low bits of a count.
  static_assert((kStages & (kStages - 1)) == 0 && (kQStages & (kQStages - 1)) == 0, "powers of two");

  // Columns of one TMA box and of one swizzle pattern.
  static constexpr int kSwizzleBytes = kHeadDim % 64 == 0 ? 128 : 64;
  static constexpr int kBoxCols = kSwizzleBytes / 2;
  static constexpr int kColBlocks = kHeadDim / kBoxCols;
  static constexpr int kColBlocksV = kHeadDimV / kBoxCols;
  static_assert(kHeadDim % kBoxCols == 0 && kHeadDimV % kBoxCols == 0, "whole column blocks");
  static_assert(!kIsShort || kHeadDim == kHeadDimV, "that kernel has one way to load");

  static constexpr uint32_t kQBytes = kBlockM * kHeadDim * 2;
  static constexpr uint32_t kKBytes = kBlockN * kHeadDim * 2;
  static constexpr uint32_t kVBytes = kBlockN * kHeadDimV * 2;

  // One thread block has all columns of a tile.
  static constexpr int kCtas = 1;
  static constexpr int kReaders = kPaired ? 2 : 1;  // thread blocks that read what is loaded of K and V
  static __device__ __forceinline__ int32_t first_column() { return 0; }
  static constexpr int kStagedRows = 64;  // of a column block where the output of a warpgroup is staged

  struct Job : LoadJob {
    int32_t number, round;  // of the tile, in the kernel for short sequences; number also for a scout
  };

  // Where the rows of a cache are copied one by one: how many of a key block a warp copies, and the addresses of those
  // of the producer's four warps, those of every fourth row side by side, such that four lanes read from different
  // banks.
  static constexpr int kCopiedRows = kBlockN / 2;
  static constexpr int kRowPlaces = kCopiedRows / 4 + 2;
  static_assert(!kCache || kRowPlaces % 2 == 0, "two addresses are read at once");
  struct alignas(16) RowPlaces {
    uint64_t of_warp[4][4 * kRowPlaces];
  };
  struct Nothing {};
  using CopiedRows = std::conditional_t<kCache, RowPlaces, Nothing>;

  // Two, so that a tile may be looked for while the one before has not been asked for. Two streams have no memory left.
  static constexpr int kAsks = kScouts && kStreams == 1 ? 2 : 1;

  // Those that the copy engine or the producer completes, by one arrival, and those that the consumers complete: by an
  // arrival a warp, and tile_empty, whose slot is read by ordinary loads of all threads, by one a thread.
  struct Barriers {
    uint64_t q_full[kQStages], k_full[kStages], v_full[kStages], tile_full[kTileSlots];
    uint64_t q_empty[kQStages], k_empty[kStages], v_empty[kStages], tile_empty[kTileSlots];
    uint64_t out_empty;           // where the output is staged in the place of V
    uint64_t tile_wanted[kAsks];  // by the producer, of its scout: even tiles and odd ones
    // A warpgroup's output and RowLse: by its threads, that they are there; by the Storer, that they may be
    // overwritten.
    uint64_t staged[kStores ? kConsumers : 1], stored[kStores ? kConsumers : 1];
  };
  static constexpr int kFullBarriers = kQStages + 2 * kStages + kTileSlots;
  static constexpr int kEmptyBarriers = kFullBarriers + 1;
  static_assert(sizeof(Barriers) == 8 * (kFullBarriers + kEmptyBarriers + kAsks + 2 * (kStores ? kConsumers : 1)),
                "all of them");

  struct SharedStorage {
    alignas(1024) Element q[kQStages][kBlockM * kHeadDim];
    alignas(1024) Element k[kStages][kBlockN * kHeadDim];
    alignas(1024) Element v[kStages][kBlockN * kHeadDimV];
    alignas(1024) Element own_out[kStagesInV ? 1 : kBlockM * kHeadDimV];
    Barriers barriers;
    WorkTile tile[kTileSlots];
    Job job[kIsShort || kScouts ? kTileSlots : 1];
    int32_t first_m_block[kMostAddedUp + 1];
    RowLse lse[kStoresLse ? kBlockM : 1];
    CopiedRows copied;
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
  static_assert(!kStagesInV || (kStages == 2 && kConsumers <= 2 && kBlockN >= 64), "room for the output");
  static constexpr uint32_t kSharedBytes = kStreams * sizeof(SharedStorage);
  static_assert(kSharedBytes <= 232448, "a block has 227 KB of shared memory");
};

}  // namespace flash3::device
