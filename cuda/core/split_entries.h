// Where the merging kernel finds what the split-KV kernel has computed of a tile.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/split_pieces.h"
#include "core/split_schedule.h"

namespace flash3::core {

struct SplitEntries {
  const SplitSchedule &schedule;

  // The place of a tile's entry, where tiles have one.
  FLASH3_HD int32_t place_of(const SplitPiece &x) const { return x.batch * schedule.nheads_k + x.kv_head; }

  // The entry of a tile that is cut like all others, by its place. A part is a piece then, so that nothing need be
  // noted.
  FLASH3_HD SplitEntry of_even_tile(int32_t place) const {
    const SplitSchedule &s = schedule;
    const auto cuts = static_cast<int32_t>(s.cuts.divisor);
    const int32_t b = place / s.nheads_k;
    const int32_t kv_head = place - b * s.nheads_k;
    const int32_t head = kv_head / s.num_lines;  // on its line
    const int32_t line = kv_head - head * s.num_lines;
    const int32_t part = (b * s.heads_of_line + head) * cuts;
    SplitEntry e = entry(b, kv_head, 0, s.lengths(b));
    e.first_piece = (s.parts_of_line + part) * s.num_lines + line;
    e.next_piece = (part + 1) * s.num_lines + line;
    e.step = s.num_lines;
    e.count = cuts;
    return e;
  }

  // The entry of a part of a balanced schedule, by its first piece: what is to be merged if it is the second of its
  // tile. So every tile that is in pieces has one entry.
  FLASH3_HD SplitEntry of_part(const SplitPiece &x, const SplitParts &parts, const SplitPartId &part) const {
    const SplitSchedule &s = schedule;
    SplitEntry e = entry(x.batch, x.kv_head, x.m_block, x.lengths);
    const int32_t begun_by = parts.part_of(x.tile_begin);
    if (x.first || begun_by + 1 != part.index) {
      e.rows = 0;
      return e;
    }
    e.first_piece = (s.parts_of_line + begun_by) * s.num_lines + part.line;
    e.next_piece = part.index * s.num_lines + part.line;
    e.step = s.num_lines;
    e.count = parts.part_of(x.tile_end - 1) - begun_by + 1;
    return e;
  }

  // Of a fixed number of splits nothing is noted: the lengths say which tiles there are, each in so many pieces.
  FLASH3_HD SplitEntry of_tile(int32_t b, int32_t kv_head, int32_t m_block) const {
    SplitEntry e = entry(b, kv_head, m_block, schedule.lengths(b));
    e.next_piece = 1;
    e.step = 1;
    e.count = schedule.num_splits;
    return e;
  }

 private:
  // Of a tile, without its pieces.
  FLASH3_HD SplitEntry entry(int32_t b, int32_t kv_head, int32_t m_block, const SplitLengths &s) const {
    SplitEntry e = {};
    e.batch = b;
    e.kv_head = kv_head;
    e.m_block = m_block;
    e.rows = schedule.tile_rows(s, m_block);
    e.q_start = static_cast<int32_t>(schedule.q.span(b).start);
    return e;
  }
};

}  // namespace flash3::core
