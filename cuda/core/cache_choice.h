// Which kernel computes a call with a cache: the split-KV kernel, which shares out the keys of a tile of few packed
// rows, or the forward kernel, whose tiles of one head take the tensor cores further, in pieces of their keys where
// tiles are few. By what either is estimated to take, from the shapes of the call alone: lengths in device memory may
// be shorter, which changes both alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "core/block_range.h"
#include "core/call_facts.h"
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
inline constexpr int64_t kSplitStartClocks = 60000;

// Of the kernel that merges pieces: for its launch, for two rows of the result, and for the bytes that a multiprocessor
// moves in a clock.
inline constexpr int64_t kMergeStartClocks = 6000;
inline constexpr int64_t kMergeTwoRowsClocks = 3;
inline constexpr int64_t kMergeBytesPerClock = 16;

// That the memory delivers in a clock.
inline constexpr int64_t kReadBytesPerClock = 2400;

// The choice is the same on every GPU, so that the result is, and the workspace.
inline constexpr int64_t kUsualMultiprocessors = 132;

// Pieces of all tiles together fill all multiprocessors so many times at most.
inline constexpr int64_t kMostRounds = 4;
inline constexpr int64_t kMostPieces = 128;

// How the forward kernel for caches cuts a call up, and what it costs then.
struct Pieces {
  int32_t count;  // of the keys of every tile, at most
  int32_t pack;   // query heads of a KV head whose rows make tiles together, alternating
  int64_t clocks;

  bool whole_tiles_of_heads() const { return count == 1 && pack == 1; }
};

// What a call costs in the forward kernel for caches, with whole tiles and cut at best, and in the split-KV kernel.
struct CacheCosts {
  int64_t whole;
  Pieces best;
  int64_t split;
};

// What the forward kernel works through: tiles, each of which takes `tile_clocks` beside the `key_clocks` of its
// `blocks` key blocks, what reading K and V takes in any case, rows of the result, and bytes of all partial results of
// a piece, in float32.
struct TileWork {
  int64_t tiles, tile_clocks, key_clocks, blocks, reading_clocks, rows, result_bytes;

  int64_t clocks(int32_t pieces) const {
    const int64_t rounds = (pieces * tiles + kUsualMultiprocessors - 1) / kUsualMultiprocessors;
    const int64_t own = std::max(rounds * (tile_clocks + (key_clocks + pieces - 1) / pieces), reading_clocks);
    // Partial results are written, and read again.
    const int64_t moving = 2 * pieces * result_bytes / (kMergeBytesPerClock * kUsualMultiprocessors);
    return pieces > 1 ? own + kMergeStartClocks + kMergeTwoRowsClocks * rows / 2 + moving : own;
  }

  // By whole tiles, or by as many pieces as fill the multiprocessors once, twice, ..
  void improve(int32_t pack, Pieces *best) const {
    consider(1, pack, best);
    const int64_t most = std::min(kMostPieces, blocks / kLeastPieceBlocks);
    for (int64_t rounds = 1; rounds <= kMostRounds; ++rounds) {
      const int64_t count = std::min(most, rounds * kUsualMultiprocessors / std::max(tiles, int64_t{1}));
      if (count > 1) consider(static_cast<int32_t>(count), pack, best);
    }
  }

 private:
  void consider(int32_t count, int32_t pack, Pieces *best) const {
    const Pieces pieces = {count, pack, clocks(count)};
    const bool fewer = pack > best->pack;  // tiles for the same time
    if (pieces.clocks < best->clocks || (fewer && pieces.clocks == best->clocks)) *best = pieces;
  }
};

// Whether the rows of `group` query heads may make tiles together, `rows` being the most that a sequence can have: a
// warpgroup has all of those of a query then, and rows have 32-bit numbers.
inline bool may_pack(int64_t rows, int64_t group) {
  constexpr int64_t kRowsOfWarpgroup = 64;
  return group > 1 && kRowsOfWarpgroup % group == 0 && rows < (int64_t{1} << 30) / group;
}

// Of so many keys a sequence, each once. Lengths may be such that their bytes need more than 64 bits.
inline int64_t reading_clocks(const flash3_params &p, int64_t keys) {
  const double rows = static_cast<double>(keys) * static_cast<double>(CountedQueries::of(p).sequences) * p.nheads_k;
  return static_cast<int64_t>(2. * rows * (p.head_dim + p.head_dim_v) / kReadBytesPerClock);
}

// For num_splits 0 or 1 and a call with more rows than a tile of the split-KV kernel; no head dim is too large.
inline CacheCosts cache_costs(const flash3_params &p, const TileConfig &config) {
  const int64_t group = p.nheads / p.nheads_k;
  const auto [batch, rows] = CountedQueries::of(p);
  const int64_t keys = most_keys(p);
  const Mask mask{Window::make(p.window_left, p.window_right), static_cast<int32_t>(rows), static_cast<int32_t>(keys)};

  const int64_t tiles_of_head = ceil_div(mask.seqlen_q, config.block_m);
  const int64_t clocks = estimated_clocks(config, mask) / tiles_of_head;  // of a tile, on average
  const int64_t key_clocks = clocks > config.tile_clocks ? clocks - config.tile_clocks : 0;
  TileWork work;
  work.tiles = tiles_of_head * p.nheads * batch;
  work.tile_clocks = clocks - key_clocks;
  work.key_clocks = key_clocks;
  work.blocks = key_clocks / config.block_clocks;
  work.reading_clocks = reading_clocks(p, keys);
  work.rows = rows * batch * p.nheads;
  // Partial results have a place for every row, also for those that are not counted.
  const int64_t most_rows = p.cu_seqlens_q != nullptr ? p.total_q : rows;
  work.result_bytes = std::max(work.rows, most_rows * p.nheads) * p.head_dim_v * int64_t{sizeof(float)};
  CacheCosts costs;
  costs.whole = work.clocks(1);
  costs.best = {1, 1, costs.whole};
  if (p.num_splits == 0 && !modifies_scores(p)) {
    work.improve(1, &costs.best);
    const int64_t packed_tiles = (rows * group + config.block_m - 1) / config.block_m * p.nheads_k * batch;
    if (may_pack(most_rows, group) && packed_tiles < work.tiles) {
      work.tiles = packed_tiles;
      work.improve(static_cast<int32_t>(group), &costs.best);
    }
  }

  const SplitCosts *split = kSplitCosts;
  while (split->head_dim < config.head_dim) ++split;
  const int64_t split_clocks =
      split->tile_clocks + key_clocks * config.block_n / config.block_clocks * split->clocks_of_64_keys / 64;
  const int64_t split_tiles = (rows * group + SplitSchedule::kBlockM - 1) / SplitSchedule::kBlockM * p.nheads_k * batch;
  const int64_t shared = split_tiles * split_clocks / kUsualMultiprocessors;
  const int64_t uncut = shared > split_clocks ? shared : split_clocks;
  costs.split = p.num_splits == 1 ? uncut : shared + kSplitStartClocks;
  return costs;
}

// Whether a dense call whose rows of a KV head fit a tile of the split-KV kernel is quicker in the forward kernel, in
// which each head has a tile of its own: of few keys those are done before pieces of the others have been merged. By
// what was measured on an H200 of 132 multiprocessors, behind other code.
inline bool whole_heads_are_quicker(const flash3_params &p, int64_t queries, int64_t keys) {
  constexpr int64_t kWholeStart = 14000, kSplitStart = 22500, kSplitRowClocks = 9, kFewKeys = 2048;
  const int64_t tiles = p.batch * int64_t{p.nheads};
  if (tiles > kUsualMultiprocessors || keys > kFewKeys) return false;
  const TileConfig *const of_class = tile_config(p.head_dim, p.head_dim_v);
  const auto has_64_rows = [=](const TileConfig &c) {
    return c.is_of_class(*of_class) && c.block_m == 64 && !c.is_short() && !c.is_resident();
  };
  const TileConfig *const config = std::find_if(std::begin(kTileConfigs), std::end(kTileConfigs), has_64_rows);
  if (config == std::end(kTileConfigs)) return false;
  const int64_t tile = (keys + config->block_n - 1) / config->block_n * config->block_clocks;
  const int64_t reading = reading_clocks(p, keys);
  return kWholeStart + std::max(tile, reading) < kSplitStart + reading + kSplitRowClocks * queries * tiles;
}

}  // namespace flash3::core
