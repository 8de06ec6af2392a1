// The order in which a persistent grid works through the tiles of a call: tile number -> (m_block, head, batch).
// Pure integer logic: the GPU's scheduler warp and the CPU tests run the same code.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace flash3::core {

struct Tile {
  int32_t m_block;
  int32_t head;
  int32_t batch;
};

FLASH3_HD int32_t ceil_div(int32_t a, int32_t b) { return a / b + (a % b != 0); }

// K and V of this many bytes should stay in L2 while the tiles that read them run (of 50 to 60 MB on Hopper).
inline constexpr int64_t kL2Budget = int64_t{32} << 20;

// In how large sections to take `num_columns` (batch, query head) pairs, so that the K and V of a section fit into L2.
// Always whole groups of query heads that share a KV head, since they share its K and V; and all sections of about one
// size, since a small one at the end would leave multiprocessors idle under its first, longest tiles.
FLASH3_HD int32_t section_columns(int32_t num_columns, int64_t kv_bytes_per_kv_head, int32_t group) {
  const int32_t groups = num_columns / group;
  const int64_t fit = kL2Budget / (kv_bytes_per_kv_head > 0 ? kv_bytes_per_kv_head : 1);
  const int32_t most = fit < 1 ? 1 : (fit < groups ? static_cast<int32_t>(fit) : groups);
  const int32_t sections = ceil_div(groups, most);
  return ceil_div(groups, sections) * group;
}

// Tiles of num_m_blocks x num_columns, a column being a head or a (batch, head) pair. Columns are taken in sections of
// `section`; inside a section the last m_block of every column comes first: under a causal mask it is the longest, and
// the short ones at the end fill the gaps.
FLASH3_HD void decode_section(int32_t t, int32_t num_m_blocks, int32_t num_columns, int32_t section, int32_t *m_block,
                              int32_t *column) {
  // All of a section's tiles may be more than 2^31, but then t never reaches the second section.
  const int64_t tiles_per_section = int64_t{num_m_blocks} * section;
  const int32_t s = static_cast<int32_t>(t / tiles_per_section);
  const int32_t r = static_cast<int32_t>(t - s * tiles_per_section);
  const int32_t left = num_columns - s * section;
  const int32_t width = left < section ? left : section;
  *m_block = num_m_blocks - 1 - r / width;
  *column = s * section + r % width;
}

// Every sequence has the same number of m_blocks.
struct DenseSchedule {
  int32_t num_m_blocks;
  int32_t nheads;
  int32_t batch;
  int32_t section;  // section_columns of nheads * batch

  FLASH3_HD int64_t num_tiles() const { return int64_t{num_m_blocks} * nheads * batch; }

  FLASH3_HD Tile tile(int32_t t) const {
    Tile out;
    int32_t column;
    decode_section(t, num_m_blocks, nheads * batch, section, &out.m_block, &column);
    out.batch = column / nheads;
    out.head = column - out.batch * nheads;
    return out;
  }
};

// Largest b in [0, n) with first[b] <= x, for a non-decreasing first[0..n] with first[0] <= x < first[n]. 32 places are
// probed at a time: count_leading(f) returns how many of f(0), f(1), .. f(31) hold, counted from 0 up to the first that
// does not; on the GPU each lane of a warp evaluates one.
template <class CountLeading>
FLASH3_HD int32_t find_sequence(const int32_t *first, int32_t n, int32_t x, CountLeading count_leading) {
  int32_t lo = 0;
  int32_t hi = n;
  while (hi - lo > 1) {
    const int32_t step = ceil_div(hi - lo, 32);
    const int32_t passed = count_leading([=](int32_t i) {
      const int64_t probe = lo + int64_t{i + 1} * step;
      return probe < hi && first[probe] <= x;
    });
    lo += passed * step;
    hi = hi - lo < step ? hi : lo + step;
  }
  return lo;
}

// Sequences of different lengths. first_m_block[b] is the number of m_blocks of all sequences before b, and
// first_m_block[batch] that of all: prepared on the device, since the lengths are only known there.
struct VarlenSchedule {
  const int32_t *first_m_block;
  int32_t nheads;
  int32_t batch;

  FLASH3_HD int64_t num_tiles() const { return int64_t{first_m_block[batch]} * nheads; }

  // section_of(b): section_columns of nheads for the keys of sequence b.
  template <class CountLeading, class SectionOf>
  FLASH3_HD Tile tile(int32_t t, CountLeading count_leading, SectionOf section_of) const {
    Tile out;
    out.batch = find_sequence(first_m_block, batch, t / nheads, count_leading);
    const int32_t before = first_m_block[out.batch];
    decode_section(t - before * nheads, first_m_block[out.batch + 1] - before, nheads, section_of(out.batch),
                   &out.m_block, &out.head);
    return out;
  }
};

}  // namespace flash3::core
