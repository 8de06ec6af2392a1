// Walking along a line of costs: see split_schedule.h.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/macros.h"
#include "core/split_schedule.h"

namespace flash3::core {

// The tile of a call that a place of the line is in.
struct SplitTile {
  int32_t batch, kv_head, m_block;
  int32_t begin;  // place on the line
  SplitLengths lengths;
  BlockRange range;

  // Of place `at` of a line, in sequence `b`, which begins at place `sequence_begin`.
  FLASH3_HD static SplitTile find(const SplitSchedule &s, int32_t line, int32_t at, int32_t b, int32_t sequence_begin) {
    SplitTile t;
    t.batch = b;
    t.lengths = s.lengths(b);
    const int32_t head_cost = s.head_cost(t.lengths);
    // Divisions are for those calls that need them.
    const int32_t head = s.heads_of_line > 1 ? (at - sequence_begin) / head_cost : 0;
    t.kv_head = head * s.num_lines + line;
    t.begin = sequence_begin + head * head_cost;
    t.m_block = 0;
    if (s.tiles_cost_the_same() && s.num_m_blocks(t.lengths) > 1) {
      const int32_t cost = head_cost / s.num_m_blocks(t.lengths);
      t.m_block = (at - t.begin) / cost;
      t.begin += t.m_block * cost;
    }
    t.range = s.range(t.lengths, t.m_block);
    while (!s.tiles_cost_the_same() && at >= t.begin + s.tile_cost(t.range)) {
      t.begin += s.tile_cost(t.range);
      t.range = s.range(t.lengths, ++t.m_block);
    }
    return t;
  }

  // There must be one.
  FLASH3_HD void next(const SplitSchedule &s) {
    begin += s.tile_cost(range);
    if (++m_block == s.num_m_blocks(lengths)) {
      m_block = 0;
      kv_head += s.num_lines;
      if (kv_head >= s.nheads_k) {
        kv_head %= s.num_lines;
        do lengths = s.lengths(++batch);
        while (!s.packs_few && lengths.seqlen_q == 0);
      }
    }
    range = s.range(lengths, m_block);
  }
};

// Queries that are more than SplitSchedule::most_queries of their sequence: each is computed as a tile with all its
// keys, behind the line. They have numbers, and a thread block takes, with all KV heads, every one that is as many
// numbers behind the one before as there are thread blocks.
struct SplitSurplus {
  static constexpr int32_t kNotYet = -1, kBetween = -2;
  int32_t next = -1;        // number; -1: none
  int32_t query = kNotYet;  // in its sequence, where the cursor is at one
};

// Walks through the pieces of one part.
struct SplitCursor {
  const SplitSchedule &schedule;
  int32_t at, end;  // places on the line: where it is, and where the part ends
  SplitTile tile;   // that holds `at`; or of a surplus query
  SplitSurplus surplus = {};

  FLASH3_HD bool on_line() const { return at < end; }
  FLASH3_HD bool done() const { return !on_line() && !at_surplus(); }

  // When it is done with the line, or a surplus query: goes on to the next of those, if there is one.
  FLASH3_HD bool take_surplus() {
    if (!schedule.packs_few || surplus.next < 0) return false;
    int32_t kv_head = surplus.query == SplitSurplus::kBetween ? tile.kv_head + 1 : 0;
    if (kv_head == schedule.nheads_k) {
      kv_head = 0;
      surplus.next += schedule.parts_of_line * schedule.num_lines;
    }
    int32_t behind = 0;
    for (int32_t b = 0; b < schedule.batch; ++b) {
      const SplitLengths all = schedule.lengths_of_sequence(b);
      const int32_t more = all.seqlen_q - schedule.most_queries;
      const int32_t before = behind;
      behind = SplitSchedule::behind(behind, more > 0 ? more : 0);
      if (surplus.next >= behind) continue;
      surplus.query = schedule.most_queries + surplus.next - before;
      tile.batch = b;
      tile.kv_head = kv_head;
      tile.m_block = 0;
      tile.lengths = schedule.some_queries(all, surplus.query, 1);
      tile.range = schedule.range(tile.lengths, 0);
      return true;
    }
    surplus.next = -1;
    return false;
  }

  // Only before the end.
  FLASH3_HD SplitPiece piece() const {
    if (at_surplus()) return surplus_piece();
    SplitPiece p;
    p.batch = tile.batch;
    p.kv_head = tile.kv_head;
    p.m_block = tile.m_block;
    p.lengths = tile.lengths;
    p.first_query = 0;
    p.range = tile.range;
    p.tile_begin = tile.begin;
    p.tile_end = tile_end();
    p.begin = at;
    p.first = at == tile.begin;
    p.whole = p.first && piece_end() == p.tile_end;
    const int32_t from = at - tile.begin;
    const int32_t to = piece_end() - tile.begin;
    p.n_step = 1;
    if (schedule.even) {
      // Pieces that run side by side read blocks that are neighbours.
      p.n_begin = tile.range.begin + from;
      p.n_end = tile.range.end;
      p.n_step = static_cast<int32_t>(schedule.cuts.divisor);
    } else if (schedule.balanced()) {
      // The cost that a tile has beside its key blocks lies in front of them.
      constexpr int32_t kFront = SplitSchedule::kTileCost;
      p.n_begin = tile.range.begin + (from > kFront ? from - kFront : 0);
      p.n_end = tile.range.begin + (to > kFront ? to - kFront : 0);
    } else {
      const int64_t count = tile.range.count();
      const auto splits = static_cast<uint32_t>(schedule.num_splits);
      p.n_begin = tile.range.begin + static_cast<int32_t>(static_cast<uint64_t>(count * from) / splits);
      p.n_end = tile.range.begin + static_cast<int32_t>(static_cast<uint64_t>(count * to) / splits);
    }
    return p;
  }

  FLASH3_HD void advance() {
    if (at_surplus()) {
      surplus.query = SplitSurplus::kBetween;
      return;
    }
    at = piece_end();
    if (on_line() && at == tile_end()) tile.next(schedule);
  }

 private:
  FLASH3_HD bool at_surplus() const { return schedule.packs_few && surplus.query >= 0; }

  FLASH3_HD SplitPiece surplus_piece() const {
    const BlockRange &range = tile.range;
    return {tile.batch, tile.kv_head, 0, tile.lengths, surplus.query, range, range.begin, range.end, 1, true, true,
            at,         at,           at};
  }

  FLASH3_HD int32_t tile_end() const { return tile.begin + schedule.tile_cost(tile.range); }

  FLASH3_HD int32_t piece_end() const {
    const int32_t of_tile = schedule.balanced() && !schedule.even ? tile_end() : at + 1;
    return of_tile < end ? of_tile : end;
  }
};

}  // namespace flash3::core
