// How the split-KV kernel shares out its work. A tile is up to 64 packed rows of one sequence and KV head: row r of a
// sequence is query r / group under the head r % group of the KV head, so that every key is loaded once for all of
// them. Its key blocks may be shared out to several thread blocks, whose partial results are merged afterwards.
//
// The tiles of a call, in the order (sequence, KV head, tile), lie one behind the other on a line of costs, and part p
// of the call is a piece of that line. So all parts take equally long whatever the lengths are, and nobody has to
// prepare anything: a thread block finds its part from the lengths alone.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/divisor.h"
#include "core/kv_cache.h"
#include "core/macros.h"
#include "core/mask.h"
#include "core/seqlen.h"

namespace flash3::core {

struct SplitLengths {
  int32_t seqlen_q, seqlen_k;
};

// The cut of a line of `total` into `parts` pieces.
struct SplitParts {
  int64_t total, parts;

  FLASH3_HD int64_t begin(int64_t p) const { return p >= parts ? total : p * total / parts; }
  // The part that holds place x.
  FLASH3_HD int64_t part_of(int64_t x) const { return ((x + 1) * parts - 1) / total; }
};

// What a thread block does at once: some of the key blocks of a tile.
struct SplitPiece {
  int32_t batch, kv_head, m_block;
  SplitLengths lengths;
  BlockRange range;        // of the tile
  int32_t n_begin, n_end;  // key blocks of the piece
  bool whole;              // it is all of the tile
  bool first;              // it is the first piece of its tile
  // Places on the line.
  int64_t tile_begin, tile_end, begin;
};

// Where the merging kernel finds the pieces of a tile, whose partial results are numbered.
struct SplitEntry {
  int32_t batch, kv_head, m_block;
  int32_t rows;                     // of the tile; 0: nothing to merge
  int32_t count;                    // pieces
  int32_t first_piece, next_piece;  // number of the first one and of the second one, which the others follow
  int32_t q_start;                  // first row of the sequence in q and out

  FLASH3_HD int32_t piece(int32_t i) const { return i == 0 ? first_piece : next_piece + i - 1; }
};

struct SplitSchedule {
  static constexpr int32_t kBlockM = 64;
  // Of a balanced schedule: a tile costs as much as one key block more than it has, and a part is at least that long.
  static constexpr int32_t kTileCost = 1;
  static constexpr int32_t kLeastPart = 2;
  // Thread blocks that a balanced schedule shares out to at most; the largest GPU has 144 multiprocessors.
  static constexpr int32_t kMostParts = 288;

  SeqSide q;
  KvCache k;
  Window window;
  Divisor group;  // query heads of a KV head
  int32_t nheads_k;
  int32_t batch;
  int32_t block_n;
  // Pieces that each tile is cut into, one after the other on the line: its cost is their number. 0: balanced, where
  // tiles are cut between parts only.
  int32_t num_splits;
  int32_t num_parts;  // thread blocks to share out to, at most

  FLASH3_HD bool balanced() const { return num_splits == 0; }

  FLASH3_HD SplitLengths lengths(int32_t b) const { return {q.span(b).len, k.span(b).len}; }

  FLASH3_HD int64_t rows(const SplitLengths &s) const { return int64_t{s.seqlen_q} * group.divisor; }
  FLASH3_HD int32_t num_m_blocks(const SplitLengths &s) const {
    return static_cast<int32_t>((rows(s) + kBlockM - 1) / kBlockM);
  }
  // The query of a packed row.
  FLASH3_HD int32_t query(int64_t row) const {
    constexpr int64_t kMost = INT32_MAX;
    return row <= kMost ? static_cast<int32_t>(group.quotient(static_cast<uint32_t>(row)))
                        : static_cast<int32_t>(row / group.divisor);
  }

  FLASH3_HD BlockRange range(const SplitLengths &s, int32_t m_block) const {
    const int64_t first = int64_t{m_block} * kBlockM;
    const int64_t last = first + kBlockM < rows(s) ? first + kBlockM - 1 : rows(s) - 1;
    return block_range({window, s.seqlen_q, s.seqlen_k}, query(first), query(last) + 1, block_n);
  }

  FLASH3_HD int64_t tile_cost(const BlockRange &r) const { return balanced() ? kTileCost + r.count() : num_splits; }

  // Of one sequence.
  FLASH3_HD bool tiles_cost_the_same() const { return !balanced() || !window.limited(); }

  // Of all tiles of one KV head of a sequence.
  FLASH3_HD int64_t head_cost(const SplitLengths &s) const {
    const int32_t m_blocks = num_m_blocks(s);
    const bool equal = tiles_cost_the_same();
    int64_t cost = 0;
    for (int32_t m = 0; m < (equal && m_blocks > 0 ? 1 : m_blocks); ++m) cost += tile_cost(range(s, m));
    return equal ? m_blocks * cost : cost;
  }

  FLASH3_HD int64_t sequence_cost(int32_t b) const { return nheads_k * head_cost(lengths(b)); }

  // Parts that a line of `total` is cut into.
  FLASH3_HD int64_t parts(int64_t total) const {
    const int64_t most = balanced() ? (total + kLeastPart - 1) / kLeastPart : total;
    return most < num_parts ? most : num_parts;
  }

  FLASH3_HD int32_t tile_rows(const SplitLengths &s, int32_t m_block) const {
    const int64_t rest = rows(s) - int64_t{m_block} * kBlockM;
    return static_cast<int32_t>(rest < kBlockM ? rest : kBlockM);
  }

  // The number of a piece among the partial results. Of a fixed number of splits it is the place on the line. Of a
  // balanced schedule a part has two: one for the tile that it goes on with and one for the tile that it begins last.
  FLASH3_HD int32_t number(const SplitPiece &x, int64_t part) const {
    if (!balanced()) return static_cast<int32_t>(x.begin);
    return static_cast<int32_t>(x.first ? num_parts + part : part);
  }

  // What is to be merged because of this piece, the first one of `part` or of its tile: the entry with the number of
  // the part or, of a fixed number of splits, of the tile. Every tile that is in pieces has one.
  FLASH3_HD SplitEntry entry(const SplitPiece &x, const SplitParts &parts, int64_t part) const {
    SplitEntry e = {x.batch, x.kv_head, x.m_block, 0, 0, 0, 0, static_cast<int32_t>(q.span(x.batch).start)};
    if (!balanced()) {
      if (!x.first || num_splits == 1) return e;
      e.first_piece = static_cast<int32_t>(x.begin);
      e.next_piece = e.first_piece + 1;
      e.count = num_splits;
    } else {
      const auto begun_by = static_cast<int32_t>(parts.part_of(x.tile_begin));
      if (x.first || begun_by + 1 != part) return e;
      e.first_piece = num_parts + begun_by;
      e.next_piece = begun_by + 1;
      e.count = static_cast<int32_t>(parts.part_of(x.tile_end - 1)) - begun_by + 1;
    }
    e.rows = tile_rows(x.lengths, x.m_block);
    return e;
  }
};

// Walks through the pieces of one part.
struct SplitCursor {
  const SplitSchedule &schedule;
  int64_t at, end;
  int32_t batch, kv_head = 0, m_block = 0;
  int64_t tile_begin;
  SplitLengths lengths = {0, 0};
  BlockRange range = {0, 0, 0, 0};

  // The part [begin, end) of the line, whose first place is in sequence `b`, which begins at `sequence_begin`.
  FLASH3_HD SplitCursor(const SplitSchedule &s, int64_t begin, int64_t part_end, int32_t b, int64_t sequence_begin)
      : schedule(s), at(begin), end(part_end), batch(b), tile_begin(sequence_begin) {
    if (done()) return;
    lengths = schedule.lengths(batch);
    const int64_t head_cost = schedule.head_cost(lengths);
    kv_head = static_cast<int32_t>((at - tile_begin) / head_cost);
    tile_begin += kv_head * head_cost;
    if (schedule.tiles_cost_the_same()) {
      const int64_t cost = head_cost / schedule.num_m_blocks(lengths);
      m_block = static_cast<int32_t>((at - tile_begin) / cost);
      tile_begin += m_block * cost;
    }
    for (;; ++m_block) {
      range = schedule.range(lengths, m_block);
      if (at < tile_begin + tile_cost()) break;
      tile_begin += tile_cost();
    }
  }

  FLASH3_HD bool done() const { return at >= end; }

  // Only before the end.
  FLASH3_HD SplitPiece piece() const {
    SplitPiece p;
    p.batch = batch;
    p.kv_head = kv_head;
    p.m_block = m_block;
    p.lengths = lengths;
    p.range = range;
    p.tile_begin = tile_begin;
    p.tile_end = tile_begin + tile_cost();
    p.begin = at;
    p.first = at == tile_begin;
    p.whole = p.first && piece_end() == p.tile_end;
    const int64_t count = range.count();
    const int64_t from = at - tile_begin;
    const int64_t to = piece_end() - tile_begin;
    if (schedule.balanced()) {
      // The cost that a tile has beside its key blocks lies in front of them.
      constexpr int64_t kFront = SplitSchedule::kTileCost;
      p.n_begin = range.begin + static_cast<int32_t>(from > kFront ? from - kFront : 0);
      p.n_end = range.begin + static_cast<int32_t>(to > kFront ? to - kFront : 0);
    } else {
      p.n_begin = range.begin + static_cast<int32_t>(count * from / schedule.num_splits);
      p.n_end = range.begin + static_cast<int32_t>(count * to / schedule.num_splits);
    }
    return p;
  }

  FLASH3_HD void advance() {
    at = piece_end();
    if (!done() && at == tile_begin + tile_cost()) next_tile();
  }

 private:
  FLASH3_HD int64_t tile_cost() const { return schedule.tile_cost(range); }

  FLASH3_HD int64_t piece_end() const {
    const int64_t tile_end = schedule.balanced() ? tile_begin + tile_cost() : at + 1;
    return tile_end < end ? tile_end : end;
  }

  FLASH3_HD void next_tile() {
    tile_begin += tile_cost();
    if (++m_block == schedule.num_m_blocks(lengths)) {
      m_block = 0;
      if (++kv_head == schedule.nheads_k) {
        kv_head = 0;
        // A place of the line is behind, so there is a sequence with rows.
        do lengths = schedule.lengths(++batch);
        while (lengths.seqlen_q == 0);
      }
    }
    range = schedule.range(lengths, m_block);
  }
};

}  // namespace flash3::core
