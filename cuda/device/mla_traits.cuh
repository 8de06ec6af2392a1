// The kernel of latent attention (MLA): constants and shared memory. A key is 576 columns, of which the first 512 are
// its value, so that what is loaded for Q * K^T serves P * V.
//
// 64 rows of 512 float32 are too much for one warpgroup: there are two, each of which has half of the columns of O.
// They take turns with the key blocks: block j belongs to warpgroup j % 2, which computes its scores and probabilities
// for both.
#pragma once

#include <cstdint>

#include "core/split_config.h"
#include "device/split_parts.cuh"
#include "device/swizzle.cuh"

namespace flash3::device {

// kPlain: for calls alone that core::is_plain_decoding and core::sees_all_keys; see there.
template <class Element_, bool kPlain_>
struct MlaTraits {
  using Element = Element_;
  static constexpr bool kPlain = kPlain_;
  static constexpr bool kPacked = false;
  static constexpr bool kMergesInClusters = false;
  static constexpr bool kSeesAllKeys = kPlain;
  static constexpr bool kWholeTiles = true;  // see PartFinder: to merge partial results takes long, they are large
  static constexpr int kHeadDim = core::kLatentHeadDim;
  static constexpr int kHeadDimV = core::kLatentHeadDimV;
  static constexpr int kBlockM = core::SplitSchedule::kBlockM;  // of one thread block
  static constexpr int kBlockN = core::kLatentBlockN;
  static_assert(kBlockM == 64 && kBlockN == 64, "the tile is that of one warpgroup, and P as wide as a chunk");

  static constexpr int kGroups = 2;
  static constexpr int kConsumerThreads = kGroups * 128;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kConsumerRegisters = 224;
  static constexpr int kProducerRegisters = 56;
  static_assert(kConsumerThreads * kConsumerRegisters + 128 * kProducerRegisters <= 65536 / kThreads / 8 * 8 * kThreads,
                "threads get no more registers than a thread block starts with");
  // One warp sets the copy engine to K, the others of its warpgroup copy Q.
  static constexpr int kQueryThreads = 96;

  // Tiles lie in shared memory as chunks of 64 columns, with 128-byte swizzle.
  static constexpr int kSwizzleBytes = 128;
  static constexpr int kChunkCols = 64;
  static constexpr int kChunks = kHeadDim / kChunkCols;
  static constexpr int kHalfChunks = kHeadDimV / kChunkCols / kGroups;  // those that are a warpgroup's columns of O
  static constexpr int kHalfCols = kHalfChunks * kChunkCols;
  // The one that is no V. Once a block's scores are there, its probabilities take the place.
  static constexpr int kLastChunk = kChunks - 1;
  static_assert(kGroups * kHalfChunks == kLastChunk, "one chunk more than V has");
  using Chunk = Element[64 * kChunkCols];
  static constexpr int kChunkBytes = sizeof(Chunk);

  // The parts of a buffer that are given back together: the columns of its owner, and all others.
  enum Side : int { kOwn = 0, kOther = 1, kSides = 2 };

  struct Barriers {
    uint64_t full[kGroups][kChunks], empty[kGroups][kSides];
    uint64_t q_full, q_empty;
    uint64_t published[kGroups];  // what a warpgroup has to say of its block
    uint64_t summed[kGroups];     // its sums of a piece are there
  };

  // What comes with Q.
  struct Job {
    core::SplitPiece piece;
    int32_t q_start;  // first row of the sequence in q and out
    bool done;        // there is no more
  };

  // What the warpgroup of a block tells the other one of a row, beside its probabilities.
  struct RowState {
    float reference, correction;  // see OnlineSoftmax
  };

  struct SharedStorage {
    alignas(1024) Chunk q[kChunks];
    alignas(1024) Chunk k[kGroups][kChunks];
    RowState rows[kGroups][kBlockM];
    float sums[2][kGroups][kBlockM];
    Barriers barriers;
    Job jobs[2];
    uint32_t poison[kGroups][kBlockN / 32];  // see MlaPoison; a bit a key
    int32_t warp_costs[kThreads / 32];       // see PartFinder
    int32_t warp_largest[kThreads / 32];     // likewise
    SplitPart part;
  };
  static_assert(sizeof(SharedStorage) <= 232448, "a thread block has 227 KB of shared memory");

  // Byte offset of 16 bytes in a tile; col: a multiple of 8.
  static __device__ __forceinline__ uint32_t offset(int row, int col) {
    return swizzled_offset<kSwizzleBytes, kChunkBytes / kSwizzleBytes>(row, col);
  }
};

inline constexpr uint32_t kMlaWithin = 0;  // + warpgroup: the named barrier of its own

}  // namespace flash3::device
