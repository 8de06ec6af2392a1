// The tile shapes of the split-KV kernels, and which calls they compute.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/cache_choice.h"
#include "core/call_facts.h"
#include "core/split_schedule.h"
#include "flash3.h"

namespace flash3::core {

struct SplitFlight {
  int32_t stages;         // K and V blocks in flight, each, in a thread block
  int32_t blocks_per_sm;  // thread blocks that share a multiprocessor
};

struct SplitConfig {
  int32_t head_dim;  // columns the kernel is instantiated for
  int32_t block_n;   // keys of a block
  // Where key blocks are boxes of the copy engine, and where they are copied row by row.
  SplitFlight boxes, rows;
  // Where they are boxes, but not of pages, and the call is computed_by_warps().
  SplitFlight dense_for_warps;
};

// A multiprocessor that reads at the rate of the memory needs some 60 KB on their way; with more than 100 the memory
// becomes slower. One thread block has fewer pieces to be merged than two, and leaves room to the merging kernel. Two
// are quicker where arithmetic takes nearly as long as reading, or four warps do not copy rows quickly enough.
// Warps that compute alone give buffers back sooner and need fewer, except, as measured, for pages.
inline constexpr SplitConfig kSplitConfigs[] = {
    {64, 128, {2, 2}, {2, 2}, {2, 2}}, {96, 64, {3, 2}, {3, 2}, {3, 2}},  {128, 64, {3, 1}, {2, 2}, {2, 1}},
    {192, 64, {2, 1}, {2, 1}, {2, 1}}, {256, 64, {2, 1}, {2, 1}, {2, 1}},
};
inline constexpr int32_t kNumSplitConfigs = sizeof(kSplitConfigs) / sizeof(kSplitConfigs[0]);
inline constexpr int32_t kMostSplitDim = kSplitConfigs[kNumSplitConfigs - 1].head_dim;

// Latent attention (MLA): the first columns of k are v, too, so that a key is loaded once for both.
inline constexpr int32_t kLatentHeadDim = 576;
inline constexpr int32_t kLatentHeadDimV = 512;
inline constexpr int32_t kLatentBlockN = 64;

// Of calls that decode all keys, tiles of up to so many rows are computed by warps alone, each with keys of its own.
inline constexpr int32_t kWarpRows = 8;
// And up to which a warp of a warpgroup computes half as many as it could.
inline constexpr int32_t kFewRows = 32;

// Whether a call of the CUDA backend is one of latent attention; no other kernel has these head dims.
inline bool is_latent(const flash3_params &p) {
  return p.head_dim == kLatentHeadDim && p.head_dim_v == kLatentHeadDimV;
}

// Thread blocks that share a tile. What one of two of latent attention loads, the other one finds in L2.
inline int32_t blocks_of_tile(const flash3_params &p) {
  if (!is_latent(p)) return 1;
  return mean_queries(p) * (p.nheads / p.nheads_k) > SplitSchedule::kBlockM ? 2 : 1;
}

// Parts that a balanced schedule shares out to at most.
inline int32_t most_parts(const flash3_params &p) {
  return is_latent(p) ? SplitSchedule::kMostMultiprocessors / blocks_of_tile(p) : SplitSchedule::kMostParts;
}

inline bool has_kv_cache(const flash3_params &p) {
  return p.page_table != nullptr || p.cache_batch_idx != nullptr || p.cache_leftpad != nullptr || p.k_new != nullptr ||
         p.rotary_cos != nullptr;
}

// Which kernel computes a call of the CUDA backend.
struct Route {
  bool split;     // the split-KV kernel; otherwise a forward kernel:
  Pieces pieces;  // of another shape than whole tiles of a head: that for pieces

  bool in_pieces() const { return !split && !pieces.whole_tiles_of_heads(); }
};

inline bool is_packed_decoding(const flash3_params &p);

// The split-KV kernel computes calls with splits, those with so few queries that one tile holds them and the keys are
// what takes time, and those with a cache that are not better off in the forward kernel. Dense calls whose tiles are
// few and long are computed like those with a cache, too: where that takes no more than 3/5 of the time.
inline Route route_of(const flash3_params &p) {
  constexpr Route kSplit = {true, {1, 1, 0}}, kWhole = {false, {1, 1, 0}};
  constexpr int64_t kFewKeys = 256, kManyKeys = 2048;
  const auto quicker = [&](const CacheCosts &c) { return c.best.clocks < c.split ? Route{false, c.best} : kSplit; };
  if (p.num_splits > 1 || is_latent(p)) return kSplit;
  const TileConfig *const config = cache_config(p.head_dim, p.head_dim_v);
  const int64_t group = p.nheads / p.nheads_k;
  const int64_t mean_q = CountedQueries::of(p).queries;
  const bool one_tile = mean_q * group <= SplitSchedule::kBlockM;
  if (has_kv_cache(p))
    return config == nullptr || one_tile || is_packed_decoding(p) ? kSplit : quicker(cache_costs(p, *config));

  if (p.num_splits == 1 || p.head_dim > kMostSplitDim || p.head_dim_v > kMostSplitDim) return kWhole;
  const bool packed_q = p.cu_seqlens_q != nullptr;
  const int64_t longest_q = !packed_q ? mean_q : p.max_seqlen_q > 0 ? p.max_seqlen_q : 2 * mean_q;
  const int64_t keys = p.cu_seqlens_k != nullptr ? p.total_k / p.batch : p.seqlen_k;
  if (longest_q * group <= SplitSchedule::kBlockM && keys >= kFewKeys) {
    const bool dense = !packed_q && p.cu_seqlens_k == nullptr && mean_q * group > kWarpRows;
    return dense && whole_heads_are_quicker(p, mean_q, keys) ? kWhole : kSplit;
  }
  if (p.cu_seqlens_k != nullptr || keys < kFewKeys || one_tile) return kWhole;
  // Nothing to gain where the rows of each head fill tiles, and keys are few or tiles one for every multiprocessor.
  const bool fills_tiles = group == 1 || mean_q >= config->block_m;
  if (fills_tiles && keys < kManyKeys) return kWhole;
  if (fills_tiles && p.batch * mean_q * p.nheads >= kUsualMultiprocessors * config->block_m) return kWhole;
  const CacheCosts costs = cache_costs(p, *config);
  return 5 * std::min(costs.best.clocks, costs.split) > 3 * costs.whole ? kWhole : quicker(costs);
}

inline bool takes_split_kernel(const flash3_params &p) { return route_of(p).split; }

// In the place of max_seqlen_q: nothing is asked for but what sequences with a single query have of it (TwoSteps).
inline constexpr int64_t kSinglesAlone = -1;

// Queries of a packed sequence at most, as far as the caller says, who may be wrong: where there are more in all, that
// is so.
inline int64_t expected_queries(const flash3_params &p) {
  if (p.max_seqlen_q == kSinglesAlone) return 1;
  if (p.max_seqlen_q > 0 && mean_queries(p) <= p.max_seqlen_q) return std::min(p.max_seqlen_q, p.total_q);
  return p.total_q <= p.batch ? 1 : p.total_q;
}

// Whether queries are packed, and those of a sequence make one tile for each KV head as far as is known. A kernel that
// is told so is right all the same where they are more (SplitSurplus). Lengths are such that a line has places for all.
inline bool has_few_packed_queries(const flash3_params &p) {
  if (p.cu_seqlens_q == nullptr || p.total_q == 0 || p.seqused_q != nullptr || is_latent(p)) return false;
  if (p.k_new != nullptr || p.rotary_cos != nullptr || p.cu_seqlens_k != nullptr) return false;
  constexpr int64_t kLeastBlockN = 64;
  const int64_t most_blocks = key_capacity(p) / kLeastBlockN + 2;
  if (int64_t{p.batch} * p.nheads_k > SplitSchedule::kMostPlaces / most_blocks) return false;
  return p.window_right <= 0 && expected_queries(p) * (p.nheads / p.nheads_k) <= SplitSchedule::kBlockM;
}

// Queries of a sequence in its only tile; of packed ones those that are expected.
inline int32_t tile_queries(const flash3_params &p) {
  return static_cast<int32_t>(has_few_packed_queries(p) ? expected_queries(p) : p.seqlen_q);
}

// Whether the window of a call hides no key from anybody, or from no query that a tile holds.
inline bool sees_all_keys(const flash3_params &p) {
  const bool single = p.cu_seqlens_q == nullptr && p.seqlen_q == 1;
  return p.window_left < 0 && (p.window_right < 0 || single);
}
inline bool tiles_see_all_keys(const flash3_params &p) {
  return sees_all_keys(p) || (p.window_left < 0 && has_few_packed_queries(p) && tile_queries(p) == 1);
}

// Whether every sequence has one tile for each KV head, whatever the lengths are.
inline bool has_one_tile(const flash3_params &p) {
  return p.cu_seqlens_q == nullptr && p.seqused_q == nullptr && p.seqlen_q > 0 &&
         p.seqlen_q * (p.nheads / p.nheads_k) <= SplitSchedule::kBlockM * blocks_of_tile(p);
}

// Whether a call is one of plain decoding, which has a kernel of its own: every sequence has the same few queries, one
// tile for each KV head, which see all of its keys, or those up to a diagonal, and nothing happens to the scores. What
// the other kernels have to ask for is known there, and not only saves time: with a cold cache most of the way to the
// first load is waiting for code.
inline bool is_plain_decoding(const flash3_params &p) {
  const bool keys_by_length = p.cu_seqlens_k == nullptr && p.cu_seqlens_k_new == nullptr && p.cache_leftpad == nullptr;
  const bool one_tile = has_one_tile(p) || has_few_packed_queries(p);
  return p.num_splits == 0 && one_tile && keys_by_length && !modifies_scores(p) && p.window_left < 0;
}
// The same of packed queries.
inline bool is_packed_decoding(const flash3_params &p) { return is_plain_decoding(p) && has_few_packed_queries(p); }

// Makes the schedule of one what it is beside that of dense queries.
inline void pack_few(const flash3_params &p, SplitSchedule *schedule) {
  schedule->one_tile = schedule->packs_few = true;
  schedule->most_queries = tile_queries(p);
  schedule->hides_later_keys = p.window_right == 0;
  if (tiles_see_all_keys(p)) schedule->window = Window{-1, -1};
}

// Plain decoding without a diagonal, and not of latent attention.
inline bool decodes_all_keys(const flash3_params &p) {
  return is_plain_decoding(p) && tiles_see_all_keys(p) && !is_latent(p);
}

inline bool computed_by_warps(const flash3_params &p) {
  return decodes_all_keys(p) && tile_queries(p) * (p.nheads / p.nheads_k) <= kWarpRows;
}

// And with one query and one new row of every sequence the kernel does the work of the append itself, too.
inline bool appends_itself(const flash3_params &p) {
  return decodes_all_keys(p) && p.seqlen_q == 1 && p.k_new != nullptr && p.seqlen_k_new == 1;
}

// Rows of out and q in all.
inline int64_t query_rows(const flash3_params &p) {
  return p.cu_seqlens_q != nullptr ? p.total_q : int64_t{p.batch} * p.seqlen_q;
}

// Upper bounds of what the schedule of a call consists of, as far as they are known before the lengths.
struct SplitBounds {
  int64_t tiles;
  int64_t most_tiles;    // also of a wrong cu_seqlens_q, whose sequences may overlap
  int32_t tile_rows;     // of the longest tile
  int64_t entries;       // SplitEntry, of a balanced schedule
  int64_t partial_rows;  // rows of partial results

  static SplitBounds of(const flash3_params &p) {
    const int64_t block_m = SplitSchedule::kBlockM * int64_t{blocks_of_tile(p)};
    const int64_t group = p.nheads / p.nheads_k;
    const bool decodes = is_packed_decoding(p);
    const bool packed = p.cu_seqlens_q != nullptr && !decodes;
    const int64_t longest = (packed ? p.total_q : tile_queries(p)) * group;
    SplitBounds b;
    const int64_t m_blocks = packed ? longest / block_m + p.batch : (longest + block_m - 1) / block_m * p.batch;
    b.tiles = m_blocks * p.nheads_k;
    b.most_tiles = (longest + block_m - 1) / block_m * p.batch * p.nheads_k;
    b.tile_rows = static_cast<int32_t>(longest < block_m ? longest : block_m);
    if (p.num_splits == 0) {
      b.entries = most_parts(p);
      b.partial_rows = 2 * int64_t{most_parts(p)} * b.tile_rows;
    } else {
      b.entries = 0;
      b.partial_rows = p.num_splits > 1 ? p.num_splits * query_rows(p) * p.nheads : 0;
    }
    return b;
  }
};

// Whether no tile has more rows than a warpgroup computes with one for each thread.
inline bool has_few_rows(const flash3_params &p) { return SplitBounds::of(p).tile_rows <= kFewRows; }

// Bytes of K and V of a key block.
inline int64_t block_bytes(const flash3_params &p, const SplitSchedule &schedule) {
  return int64_t{schedule.block_n} * (p.head_dim + p.head_dim_v) * 2;
}

// Whether thread blocks of a call may merge in clusters (SplitSchedule::merged_by_clusters). The kernel that writes new
// rows and computes by a warpgroup has no registers left for it: 4 to 7 % of small calls.
inline bool merges_in_clusters(const flash3_params &p) {
  return is_plain_decoding(p) && !is_latent(p) && (computed_by_warps(p) || !appends_itself(p));
}

// Whether they may do so two by two as the schedule of the call is. Then allow_pairs() makes it so, where the GPU holds
// as many clusters.
inline bool may_merge_in_pairs(const flash3_params &p, const SplitSchedule &schedule) {
  return merges_in_clusters(p) && schedule.allows_pairs();
}
inline void allow_pairs(const flash3_params &p, int64_t multiprocessors, SplitSchedule *schedule) {
  schedule->allow_pairs(block_bytes(p, *schedule), computed_by_warps(p), multiprocessors);
}

// Whether the threads of a warpgroup, each of which has two of eight columns, have whole items of 16 bytes for so many
// blocks of a cluster; and registers.
constexpr bool warpgroups_exchange(int32_t head_dim, int32_t blocks) {
  return head_dim / 8 / blocks % 2 == 0 && head_dim <= 128;
}

// Whether clusters of so many thread blocks, one for each tile, are quicker than all multiprocessors and the merging
// kernel even for as many keys as a sequence may have. Then cut_for_clusters() makes it so, likewise. head_dim: of the
// kernel.
inline bool suits_clusters(const flash3_params &p, const SplitSchedule &schedule, int32_t head_dim, int32_t blocks,
                           int64_t multiprocessors) {
  // As measured: tiles, since the clusters of fewer read too slowly together; key blocks for each thread block, so that
  // as many as eight pay; and bytes that one reads while the merging kernel, which takes longer to come where heads are
  // wide, would merge.
  constexpr int64_t kLeastTiles = 4, kLeastBlocks = 2, kFew = 4;
  const bool by_warps = computed_by_warps(p);
  const int64_t alone = (!by_warps ? 240 : head_dim <= 128 ? 384 : 768) * 1024;
  const int64_t tiles = int64_t{p.batch} * p.nheads_k;
  if (!merges_in_clusters(p) || !schedule.allows_even_cuts()) return false;
  if (tiles < kLeastTiles || tiles * blocks > multiprocessors) return false;
  if (!by_warps && !(has_few_rows(p) && warpgroups_exchange(head_dim, blocks))) return false;
  const int64_t most = multiprocessors / tiles;  // of thread blocks for a tile
  const int64_t keys = most_keys(p);
  if (blocks > kFew && keys < kLeastBlocks * blocks * schedule.block_n) return false;
  return keys * block_bytes(p, schedule) / schedule.block_n * (most - blocks) <= alone * blocks * most;
}

}  // namespace flash3::core
