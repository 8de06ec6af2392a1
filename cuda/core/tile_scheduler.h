// The order in which a persistent grid works through the tiles of a call: tile number -> (m_block, head, batch).
// Pure integer logic: the GPU's scheduler warp and the CPU tests run the same code.
#pragma once

#include <cstdint>

#include "core/divisor.h"
#include "core/macros.h"
#include "core/mask.h"

namespace flash3::core {

struct Tile {
  int32_t m_block;
  int32_t head;
  int32_t batch;
  int32_t piece = 0;  // of its keys, where several thread blocks compute a tile
};

FLASH3_HD int32_t ceil_div(int32_t a, int32_t b) { return a / b + (a % b != 0); }

// K and V of this many bytes are read by the tiles that run side by side. Measured on an H200, whose L2 of 60 MB also
// takes Q and the output: small sections keep more of what is read in the near half of L2, but under a causal mask the
// tiles of the last section, which are of all lengths, must be many enough to fill the gaps.
inline constexpr int64_t kL2Budget = int64_t{8} << 20;
inline constexpr int64_t kL2BudgetCausal = int64_t{16} << 20;
// Pairs of tiles, which read half as much from L2.
inline constexpr int64_t kL2BudgetPaired = int64_t{4} << 20;
// Where two multiprocessors share a tile, and causal at (192, 128) and d 256, whose sections of 16 MB are too narrow:
// the longest tile of the last one takes longer than its share of all of them (d 256, 2 x 2,048: 99 us, not 61).
inline constexpr int64_t kL2BudgetWide = int64_t{32} << 20;
// Causal at d 192, for the same reason: 4 to 5 % from 4k on.
inline constexpr int64_t kL2Budget192 = int64_t{40} << 20;

// Keys of a sequence that tiles of a column which run one after the other read: under a window not all of them.
FLASH3_HD int64_t keys_in_use(const Window &window, int64_t seqlen_k, int32_t block_m) {
  if (window.left < 0 || window.right < 0) return seqlen_k;
  const int64_t seen = int64_t{window.left} + window.right + block_m;
  return seen < seqlen_k ? seen : seqlen_k;
}

// The columns of a schedule, a column being a head or a (batch, head) pair, cut into sections that are worked through
// one after the other. Sections are made of whole groups of query heads that share a KV head, since they share its K
// and V, and their widths differ by one group at most: a narrow one at the end would leave multiprocessors idle under
// its first, longest tiles.
struct Sections {
  int32_t narrow;    // columns of a narrow section; wide ones have `group` more
  int32_t num_wide;  // they come first
  int32_t group;

  FLASH3_HD static Sections make(int32_t num_columns, int32_t group, int64_t kv_bytes_per_kv_head, int64_t budget) {
    const int32_t groups = num_columns / group;
    // In 32 bits, as a producer divides before its first load: where none fits, it is one all the same.
    const auto bytes = static_cast<uint32_t>(kv_bytes_per_kv_head < budget ? kv_bytes_per_kv_head : budget);
    const uint32_t fit = static_cast<uint32_t>(budget) / (bytes > 0 ? bytes : 1);
    const int32_t most = fit < static_cast<uint32_t>(groups) ? static_cast<int32_t>(fit) : groups;
    const int32_t count = ceil_div(groups, most);
    return {groups / count * group, groups % count, group};
  }

  FLASH3_HD uint32_t width(bool wide) const { return narrow + (wide ? group : 0); }

  // Tile t of num_m_blocks a column. Inside a section the last m_block of every column comes first: under a causal mask
  // it is the longest, and the short ones at the end fill the gaps. `division` divides by the tiles and by the width of
  // a section: unsigned and in 32 bits, since a GPU divides anything else slowly. No product exceeds the number of
  // tiles.
  template <class Division>
  FLASH3_HD void decode(int32_t t, int32_t num_m_blocks, const Division &division, int32_t *m_block,
                        int32_t *column) const {
    const uint32_t tiles_of_wide = num_wide * width(true) * num_m_blocks;
    const bool wide = static_cast<uint32_t>(t) < tiles_of_wide;
    const uint32_t from = wide ? t : t - tiles_of_wide;
    const uint32_t section = division.by_tiles(from, wide);
    const uint32_t r = from - section * (width(wide) * num_m_blocks);
    const uint32_t row = division.by_width(r, wide);
    *m_block = static_cast<int32_t>(num_m_blocks - 1 - row);
    *column =
        static_cast<int32_t>((wide ? 0 : num_wide * width(true)) + section * width(wide) + (r - row * width(wide)));
  }
};

// For sections that are used once.
struct SectionDivision {
  Sections sections;
  uint32_t num_m_blocks;

  FLASH3_HD uint32_t by_tiles(uint32_t n, bool wide) const { return n / (sections.width(wide) * num_m_blocks); }
  FLASH3_HD uint32_t by_width(uint32_t n, bool wide) const { return n / sections.width(wide); }
};

// For those of a whole call.
struct PreparedSectionDivision {
  Divisor tiles_wide, tiles_narrow, width_wide, width_narrow;

  static PreparedSectionDivision make(const Sections &s, int64_t num_m_blocks) {
    return {Divisor::make(s.width(true) * num_m_blocks), Divisor::make(s.width(false) * num_m_blocks),
            Divisor::make(s.width(true)), Divisor::make(s.width(false))};
  }

  FLASH3_HD uint32_t by_tiles(uint32_t n, bool wide) const { return (wide ? tiles_wide : tiles_narrow).quotient(n); }
  FLASH3_HD uint32_t by_width(uint32_t n, bool wide) const { return (wide ? width_wide : width_narrow).quotient(n); }
};

// Where tiles are computed in pairs, the schedule counts pairs: which tile of its column the thread block `rank` of a
// pair computes. The last one of an odd number is computed by both, to the same result.
FLASH3_HD int32_t pairs_of(int32_t num_m_blocks) { return ceil_div(num_m_blocks, 2); }
FLASH3_HD int32_t tile_of_pair(int32_t pair, int32_t rank, int32_t num_m_blocks) {
  const int32_t m_block = 2 * pair + rank;
  return m_block < num_m_blocks ? m_block : num_m_blocks - 1;
}

// Where all tiles are shared out beforehand, and those of a unit, which follow each other, read the same keys: every
// thread block gets an equal share of them. In step: whole units, as many as there are for all, and a share of those
// left over; blocks that run side by side then have units side by side, whose rows are neighbours in memory.
struct UnitSchedule {
  uint32_t blocks;
  Divisor tiles_of_unit;
  uint32_t rounds;       // whole units of a block
  uint32_t share, more;  // of the tiles left over: of each block, and how many blocks have one more

  static UnitSchedule make(int64_t tiles, int64_t tiles_of_unit, int64_t blocks, bool in_step) {
    const int64_t rounds = in_step ? tiles / tiles_of_unit / blocks : 0;
    const int64_t rest = tiles - rounds * blocks * tiles_of_unit;
    return {static_cast<uint32_t>(blocks), Divisor::make(tiles_of_unit), static_cast<uint32_t>(rounds),
            static_cast<uint32_t>(rest / blocks), static_cast<uint32_t>(rest % blocks)};
  }

  FLASH3_HD uint32_t count(uint32_t block) const { return whole() + share + (block < more ? 1 : 0); }

  // Tiles of a unit that a block computes one after the other.
  struct Run {
    uint32_t unit, first, count;
  };
  // What a block goes on with when it has done so many tiles; they must be fewer than it has, and whole runs.
  FLASH3_HD Run run(uint32_t block, uint32_t done) const {
    if (done < whole()) return {block + tiles_of_unit.quotient(done) * blocks, 0, tiles_of_unit.divisor};
    const uint32_t place = left_over(block) + (done - whole());
    const uint32_t unit = tiles_of_unit.quotient(place);
    const uint32_t first = place - unit * tiles_of_unit.divisor;
    const uint32_t behind = tiles_of_unit.divisor - first;
    const uint32_t left = count(block) - done;
    return {unit, first, behind < left ? behind : left};
  }

 private:
  // Tiles of a block that are in whole units.
  FLASH3_HD uint32_t whole() const { return rounds * tiles_of_unit.divisor; }
  // The first of the tiles left over that a block has.
  FLASH3_HD uint32_t left_over(uint32_t block) const {
    return whole() * blocks + block * share + (block < more ? block : more);
  }
};

// The same where only the device knows the lengths of sequences: a thread block has every so many-th unit, some query
// heads of a sequence that share its keys.
struct PackedUnits {
  uint32_t count;
  int32_t heads;  // of a unit, a divisor of the group
  Divisor of_sequence;

  // As many heads as leave the blocks with the most work as little of it as there can be, sequences being alike.
  static PackedUnits make(int32_t batch, int32_t nheads, int32_t group, int64_t blocks) {
    int32_t heads = group;
    int64_t least = 0;
    for (int32_t h = group; h >= 1; --h) {
      if (group % h != 0) continue;
      const int64_t units = int64_t{batch} * (nheads / h);
      const int64_t most = (units + blocks - 1) / blocks * h;
      if (h < group && most >= least) continue;
      heads = h;
      least = most;
    }
    return {static_cast<uint32_t>(batch) * static_cast<uint32_t>(nheads / heads), heads, Divisor::make(nheads / heads)};
  }
};

// Every sequence has the same number of m_blocks.
struct DenseSchedule {
  int32_t num_m_blocks;
  Sections sections;  // of nheads * batch columns
  Divisor nheads;
  PreparedSectionDivision division;

  static DenseSchedule make(int32_t num_m_blocks, int32_t nheads, const Sections &sections) {
    return {num_m_blocks, sections, Divisor::make(nheads), PreparedSectionDivision::make(sections, num_m_blocks)};
  }

  FLASH3_HD Tile tile(int32_t t) const {
    Tile out;
    int32_t column;
    sections.decode(t, num_m_blocks, division, &out.m_block, &column);
    out.batch = static_cast<int32_t>(nheads.quotient(column));
    out.head = column - out.batch * static_cast<int32_t>(nheads.divisor);
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

  // sections_of(b): the sections of nheads columns, by the keys of sequence b.
  template <class CountLeading, class SectionsOf>
  FLASH3_HD Tile tile(int32_t t, CountLeading count_leading, SectionsOf sections_of) const {
    Tile out;
    out.batch = find_sequence(first_m_block, batch, t / nheads, count_leading);
    const int32_t before = first_m_block[out.batch];
    const int32_t num_m_blocks = first_m_block[out.batch + 1] - before;
    const Sections sections = sections_of(out.batch);
    const SectionDivision division = {sections, static_cast<uint32_t>(num_m_blocks)};
    sections.decode(t - before * nheads, num_m_blocks, division, &out.m_block, &out.head);
    return out;
  }
};

}  // namespace flash3::core
