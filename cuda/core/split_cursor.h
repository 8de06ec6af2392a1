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
        while (lengths.seqlen_q == 0);
      }
    }
    range = s.range(lengths, m_block);
  }
};

// Walks through the pieces of one part.
struct SplitCursor {
  const SplitSchedule &schedule;
  int32_t at, end;  // places on the line: where it is, and where the part ends
  SplitTile tile;   // that holds `at`

  FLASH3_HD bool done() const { return at >= end; }

  // Only before the end.
  FLASH3_HD SplitPiece piece() const {
    SplitPiece p;
    p.batch = tile.batch;
    p.kv_head = tile.kv_head;
    p.m_block = tile.m_block;
    p.lengths = tile.lengths;
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
    at = piece_end();
    if (!done() && at == tile_end()) tile.next(schedule);
  }

 private:
  FLASH3_HD int32_t tile_end() const { return tile.begin + schedule.tile_cost(tile.range); }

  FLASH3_HD int32_t piece_end() const {
    const int32_t of_tile = schedule.balanced() && !schedule.even ? tile_end() : at + 1;
    return of_tile < end ? of_tile : end;
  }
};

}  // namespace flash3::core
