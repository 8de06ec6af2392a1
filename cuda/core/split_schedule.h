// How the split-KV kernel shares out its work. A tile is up to 64 packed rows of one sequence and KV head: row r of a
// sequence is query r / group under the head r % group of the KV head, so that every key is loaded once for all of
// them. Its key blocks may be shared out to several thread blocks, whose partial results are merged afterwards.
//
// The tiles of a call, in the order (sequence, KV head, tile), lie one behind the other on a line of costs, and a part
// of the call is a piece of that line. So all parts take equally long whatever the lengths are, and nobody has to
// prepare anything: a thread block finds its part from the lengths alone. There are several such lines, all alike, each
// for some of the KV heads: parts that run side by side then read the same keys of heads that are neighbours in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/block_range.h"
#include "core/divisor.h"
#include "core/kv_cache.h"
#include "core/macros.h"
#include "core/mask.h"
#include "core/seqlen.h"
#include "core/split_pieces.h"

namespace flash3::core {

struct SplitSchedule {
  static constexpr int32_t kBlockM = 64;  // packed rows that a thread block computes
  // Of a balanced schedule: a tile costs as much as one key block more than it has, and a part is at least that long.
  static constexpr int32_t kTileCost = 1;
  static constexpr int32_t kLeastPart = 2;
  // What two parts may cost more than the mean where tiles are cut alike; each no more than 1/16 of it, either.
  static constexpr int32_t kMostEvenCost = 5;
  // Where two thread blocks share a multiprocessor, and one for each is quicker, as measured: up to which cost a tile
  // is computed by one (of tiles with few rows, and many: those take longer to merge), and up to which cost of a part,
  // times the tiles of a call, tiles are cut into half as many pieces.
  static constexpr int32_t kManyRows = 16, kLongestLoneTile[2] = {33, 65}, kLoneCost = 32;
  // Thread blocks that a balanced schedule shares out to at most, two a multiprocessor of the largest GPU.
  static constexpr int32_t kMostMultiprocessors = 144;
  static constexpr int32_t kMostParts = 2 * kMostMultiprocessors;
  // Places on a line at most. A wrong cu_seqlens_q, whose sequences overlap, may ask for more: the line ends here then.
  static constexpr int32_t kMostPlaces = 1 << 30;

  SeqSide q;
  KvCache k;
  Window window;
  Divisor group;  // query heads of a KV head
  int32_t nheads_k;
  int32_t batch;
  int32_t block_m;  // packed rows of a tile: kBlockM, or those of two thread blocks side by side
  int32_t block_n;
  // Pieces that each tile is cut into, one after the other on the line: its cost is their number. 0: balanced, where
  // tiles are cut between parts only.
  int32_t num_splits;
  int32_t num_lines;      // divides nheads_k; line i has KV heads i, i + num_lines, ..
  int32_t heads_of_line;  // KV heads
  int32_t parts_of_line;  // thread blocks to share each line out to
  // Every sequence has one tile for each KV head, known without looking at lengths.
  bool one_tile = false;
  // Queries are packed, and a sequence should have few: so many at most are in its tile, which is there in any case.
  // More are computed one by one (SplitSurplus), or all by another kernel. And whether none sees keys behind its own.
  bool packs_few = false;
  int32_t most_queries = 0;
  bool leaves_longer = false, hides_later_keys = false;
  // Of a balanced schedule with one tile: into how many pieces all tiles may be cut alike, and the cut of such a line.
  // Then a part has whole tiles, or equally many parts share each tile, and there is little to merge, or nothing.
  Divisor cuts = {1, 0, 0};
  SplitParts even_parts = {0, 0, 0, 0};
  bool even = false;  // they are; what the lengths decide
  // Above 1: parts of a line, so many side by side, are thread blocks that reach into each other's shared memory. Where
  // these have the pieces of a tile they merge them themselves. As that is quick, tiles of up to that cost are cut into
  // so many although they could be cut into more: whatever their lengths are, and where these are about equal.
  Divisor cluster_cuts = {1, 0, 0};
  int32_t longest_clustered_tile = 0, longest_equal_clustered_tile = 0;
  // Tiles are few enough for an entry each, in their order; otherwise parts have one.
  bool entries_by_tile = false;
  // Of a balanced schedule with one tile, where two thread blocks share a multiprocessor: how many tiles a line has if
  // that is one for nearly each multiprocessor, else 0, and up to which cost they are left whole; parts of a line for
  // one block a multiprocessor, and up to which cost of a line that is what it is shared out to.
  int32_t lone_tiles = 0, longest_lone_tile = 0;
  int32_t lone_parts = 0, lone_cost = 0;

  // The lines of a call: as many as leave few of `blocks` thread blocks without work.
  static int32_t lines(int32_t nheads_k, int32_t blocks) {
    for (int32_t n = nheads_k; n > 1; --n) {
      if (nheads_k % n == 0 && blocks % n * 32 <= blocks && n <= blocks) return n;
    }
    return 1;
  }

  // Finds `cuts` and what follows from it.
  void allow_even_cuts() {
    const int32_t tiles = batch * heads_of_line;
    if (tiles == 0) return;
    cuts = Divisor::make(parts_of_line / tiles);
    const int32_t pieces = tiles * static_cast<int32_t>(cuts.divisor);
    even_parts = SplitParts::make(pieces, pieces < parts_of_line ? pieces : parts_of_line);
    entries_by_tile = tiles <= parts_of_line;
  }

  // Whether there are two parts for every tile, side by side.
  bool allows_pairs() const { return allows_even_cuts() && cuts.divisor > 1 && parts_of_line % 2 == 0; }
  // block_bytes: of K and V of a key block; few_rows: of each tile; multiprocessors: that there are.
  void allow_pairs(int64_t block_bytes, bool few_rows, int64_t multiprocessors) {
    // In blocks: what a thread block reads while the merging kernel would merge, as measured. Two of them read a tile
    // more slowly than more would, but the less so the more tiles there are: of `enough` as fast as the memory is.
    const int64_t alone = std::max<int64_t>((few_rows ? 416 : 288) * 1024 / block_bytes, few_rows ? 10 : 1);
    const int64_t enough = 3 * multiprocessors / 10;
    const int64_t tiles = int64_t{batch} * nheads_k;
    cluster_cuts = Divisor::make(2);
    longest_clustered_tile = static_cast<int32_t>(alone + alone / 4 + kTileCost);
    longest_equal_clustered_tile = kMostPlaces;
    if (tiles < enough) {
      longest_equal_clustered_tile =
          static_cast<int32_t>(std::min(alone * enough / (enough - tiles), 4 * alone) + kTileCost);
    }
  }

  // Gives each tile a cluster of so many thread blocks, whatever the lengths are, and nothing to other ones.
  void cut_for_clusters(int32_t blocks) {
    parts_of_line = batch * heads_of_line * blocks;
    allow_even_cuts();
    cluster_cuts = cuts;
    longest_clustered_tile = kMostPlaces;
  }
  // Whether that is so.
  bool all_in_clusters() const { return longest_clustered_tile == kMostPlaces; }

  FLASH3_HD bool allows_even_cuts() const { return even_parts.parts > 0; }

  // Finds `lone_tiles` and what follows them. tile_rows: of each tile.
  void allow_lone_blocks(int32_t blocks_per_sm, int64_t tile_rows) {
    const int64_t tiles = int64_t{batch} * heads_of_line;
    if (blocks_per_sm < 2 || parts_of_line < blocks_per_sm || tiles == 0) return;
    lone_parts = parts_of_line / blocks_per_sm;
    lone_cost = static_cast<int32_t>(int64_t{kLoneCost} * parts_of_line / (tiles * num_lines));
    if (tiles > lone_parts || tiles * 17 < int64_t{lone_parts} * 16) return;
    lone_tiles = static_cast<int32_t>(tiles);
    longest_lone_tile = kLongestLoneTile[tile_rows >= kManyRows ? 1 : 0];
  }

  // Whether a line of `total` with tiles of up to `largest` is as good as balanced if all tiles are cut alike: what the
  // longest part costs more than the mean has to be less than what merging takes.
  FLASH3_HD bool even_cuts_do(int32_t total, int32_t largest) const {
    const int32_t pieces = even_parts.length + (even_parts.longer > 0 ? 1 : 0);  // of that part
    const auto blocks = static_cast<uint32_t>(largest - kTileCost) + cuts.divisor - 1;
    const int64_t longest = int64_t{pieces} * (static_cast<int32_t>(cuts.quotient(blocks)) + kTileCost);
    const int64_t more = longest * parts_of_line - total;
    return 2 * more <= int64_t{kMostEvenCost} * parts_of_line && more * 16 <= total;
  }

  FLASH3_HD bool balanced() const { return num_splits == 0; }

  FLASH3_HD int64_t first_row(int32_t b) const { return packs_few ? packed_row(b, 0) : q.span(b).start; }
  FLASH3_HD SplitLengths lengths_of_sequence(int32_t b) const {
    return {packs_few ? packed_row(b + 1, packed_row(b, 0)) - packed_row(b, 0) : q.span(b).len, k.span(b).len};
  }
  // Of what its tiles hold.
  FLASH3_HD SplitLengths lengths(int32_t b) const { return of_tiles(lengths_of_sequence(b)); }
  FLASH3_HD SplitLengths of_tiles(const SplitLengths &all) const {
    return packs_few && has_more(all) ? some_queries(all, 0, leaves_longer ? 0 : most_queries) : all;
  }
  FLASH3_HD bool has_more(const SplitLengths &all) const { return all.seqlen_q > most_queries; }
  // `count` queries of a sequence, from `first` on, and the keys that they see: as another sequence.
  FLASH3_HD SplitLengths some_queries(const SplitLengths &all, int32_t first, int32_t count) const {
    const int32_t hidden = hides_later_keys ? all.seqlen_q - first - count : 0;
    return {count, all.seqlen_k > hidden ? all.seqlen_k - hidden : 0};
  }

  FLASH3_HD int64_t rows(const SplitLengths &s) const { return int64_t{s.seqlen_q} * group.divisor; }
  FLASH3_HD int32_t num_m_blocks(const SplitLengths &s) const {
    if (one_tile) return 1;
    return static_cast<int32_t>((rows(s) + block_m - 1) / block_m);
  }
  // The query of a packed row.
  FLASH3_HD int32_t query(int64_t row) const {
    constexpr int64_t kMost = INT32_MAX;
    return one_tile || row <= kMost ? static_cast<int32_t>(group.quotient(static_cast<uint32_t>(row)))
                                    : static_cast<int32_t>(row / group.divisor);
  }

  FLASH3_HD BlockRange range(const SplitLengths &s, int32_t m_block) const {
    if (packs_few && s.seqlen_q == 0) return {0, 0, 0, 0};
    const int64_t first = int64_t{m_block} * block_m;
    const int64_t last = first + block_m < rows(s) ? first + block_m - 1 : rows(s) - 1;
    return block_range({window, s.seqlen_q, s.seqlen_k}, query(first), query(last) + 1, block_n);
  }

  FLASH3_HD int32_t tile_cost(const BlockRange &r) const {
    if (even) return static_cast<int32_t>(cuts.divisor);
    return balanced() ? kTileCost + r.count() : num_splits;
  }

  // Of one sequence.
  FLASH3_HD bool tiles_cost_the_same() const { return one_tile || !balanced() || !window.limited(); }

  // Of all tiles of one KV head of a sequence.
  FLASH3_HD int32_t head_cost(const SplitLengths &s) const {
    const int32_t m_blocks = num_m_blocks(s);
    const bool equal = tiles_cost_the_same();
    int32_t cost = 0;
    for (int32_t m = 0; m < (equal && m_blocks > 0 ? 1 : m_blocks); ++m) cost += tile_cost(range(s, m));
    return equal ? m_blocks * cost : cost;
  }

  // On each line.
  FLASH3_HD int32_t sequence_cost(int32_t b) const { return heads_of_line * head_cost(lengths(b)); }

  // The place behind `cost` more of them.
  FLASH3_HD static int32_t behind(int32_t place, int32_t cost) {
    const uint32_t sum = static_cast<uint32_t>(place) + static_cast<uint32_t>(cost);
    return sum < uint32_t{kMostPlaces} ? static_cast<int32_t>(sum) : kMostPlaces;
  }

  // The parts that a line of `total` is cut into.
  FLASH3_HD SplitParts parts(int32_t total) const { return parts(total, parts_of_line); }

  // The same where even cuts and lone blocks are allowed; no tile costs more than `largest`. Finds out which it is.
  FLASH3_HD SplitParts plain_parts(int32_t total, int32_t largest) {
    even = true;
    if (largest <= longest_clustered_tile || (largest <= longest_equal_clustered_tile && equal(total, largest))) {
      const int32_t tiles = even_parts.total / static_cast<int32_t>(cuts.divisor);
      cuts = cluster_cuts;
      const int32_t pieces = tiles * static_cast<int32_t>(cuts.divisor);
      return {pieces, pieces, 1, 0};
    }
    if (largest <= longest_lone_tile && int64_t{lone_tiles} * largest * 16 <= int64_t{total} * 17) {
      cuts = {1, uint32_t{1} << 31, 31};  // Divisor::make(1), which is for the host
      return {lone_tiles, lone_tiles, 1, 0};
    }
    const bool lone = total <= lone_cost;
    even = !lone && even_cuts_do(total, largest);
    return even ? even_parts : parts(total, lone ? lone_parts : parts_of_line);
  }

  // Whether a line of `total` with `tiles` tiles, the largest of which costs that much, is as good as balanced if every
  // part gets whole tiles, and equally many: then there is nothing to merge. num_splits 1 does it.
  FLASH3_HD bool whole_tiles_do(int32_t total, int32_t tiles, int32_t largest) const {
    const int64_t longest = int64_t{(tiles + parts_of_line - 1) / parts_of_line} * largest;
    return longest * parts_of_line * 16 <= int64_t{total} * 17;
  }

  FLASH3_HD int32_t tile_rows(const SplitLengths &s, int32_t m_block) const {
    const int64_t rest = rows(s) - int64_t{m_block} * block_m;
    if (one_tile) return static_cast<int32_t>(rest);
    return static_cast<int32_t>(rest < block_m ? rest : block_m);
  }

  // The number of a piece among the partial results. Of a fixed number of splits: among those of its rows. Of a
  // balanced schedule a part has two: one for the tile that it goes on with and one for the tile that it begins last.
  FLASH3_HD int32_t number(const SplitPiece &x, const SplitPartId &part) const {
    if (!balanced()) return x.begin % num_splits;
    return (x.first ? parts_of_line + part.index : part.index) * num_lines + part.line;
  }

  // Where tiles are cut alike: the tile of a place, counted along its line, and the sequence of a tile.
  FLASH3_HD int32_t even_tile(int32_t at) const {
    return static_cast<int32_t>(cuts.quotient(static_cast<uint32_t>(at)));
  }
  FLASH3_HD int32_t sequence_of_even_tile(int32_t tile) const {
    return heads_of_line > 1 ? tile / heads_of_line : tile;
  }

  // The first key block of a part if tiles are cut alike: that takes no lengths. False if the part would have none.
  FLASH3_HD bool first_even_block(const SplitPartId &part, int32_t *b, int32_t *kv_head, int32_t *n) const {
    const int32_t at = even_parts.begin(part.index);
    if (!allows_even_cuts() || at >= even_parts.begin(part.index + 1)) return false;
    const int32_t tile = even_tile(at);
    *b = sequence_of_even_tile(tile);
    *kv_head = (tile - *b * heads_of_line) * num_lines + part.line;
    *n = at - tile * static_cast<int32_t>(cuts.divisor);
    return true;
  }

  // Whether tiles are cut alike, and not at all.
  FLASH3_HD bool all_whole() const { return even && cuts.divisor == 1; }

  FLASH3_HD bool in_clusters() const { return cluster_cuts.divisor > 1; }

  // Whether the thread blocks that have the pieces of a tile merge them.
  FLASH3_HD bool merged_by_clusters() const { return even && in_clusters() && cuts.divisor == cluster_cuts.divisor; }

  FLASH3_HD bool nothing_to_merge() const { return all_whole() || merged_by_clusters(); }

 private:
  // Of cu_seqlens_q, in few instructions: rows of packed tensors have 32-bit numbers.
  FLASH3_HD int32_t packed_row(int32_t b, int32_t least) const {
    const int32_t x = q.cu_seqlens[b], rows = static_cast<int32_t>(q.rows);
    return x < least ? least : x < rows ? x : rows;
  }

  // Whether no tile of a line costs much more than the mean.
  FLASH3_HD bool equal(int32_t total, int32_t largest) const {
    return int64_t{batch} * heads_of_line * largest * 16 <= int64_t{total} * 17;
  }

  FLASH3_HD SplitParts parts(int32_t total, int32_t most_parts) const {
    const int32_t most = balanced() ? (total + kLeastPart - 1) / kLeastPart : total;
    return SplitParts::make(total, most < most_parts ? most : most_parts);
  }
};

}  // namespace flash3::core
