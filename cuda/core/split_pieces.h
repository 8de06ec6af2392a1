// What the schedule of the split-KV kernel (split_schedule.h) consists of.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/macros.h"

namespace flash3::core {

struct SplitLengths {
  int32_t seqlen_q, seqlen_k;
};

// The cut of a line of `total` into `parts` pieces, the first `longer` of which have `length` + 1 places, the others
// `length`. Everything is 32-bit: a GPU takes long to divide, and longer to fetch the code for it.
struct SplitParts {
  int32_t total, parts, length, longer;

  FLASH3_HD static SplitParts make(int32_t total, int32_t parts) {
    if (parts == 0) return {total, 0, 0, 0};
    const int32_t length = total / parts;
    return {total, parts, length, total - length * parts};
  }

  FLASH3_HD int32_t begin(int32_t p) const { return p >= parts ? total : p * length + (p < longer ? p : longer); }
  // The part that holds place x.
  FLASH3_HD int32_t part_of(int32_t x) const {
    const int32_t in_longer = longer * (length + 1);
    return x < in_longer ? x / (length + 1) : longer + (x - in_longer) / length;
  }
};

// What one thread block computes.
struct SplitPartId {
  int32_t line, index;  // on the line
};

// What a thread block does at once: some of the key blocks of a tile.
struct SplitPiece {
  int32_t batch, kv_head, m_block;
  SplitLengths lengths;
  int32_t first_query;     // of the tile's rows, in the sequence; 0 but for one that is computed by itself
  BlockRange range;        // of the tile
  int32_t n_begin, n_end;  // key blocks of the piece: n_begin, n_begin + n_step, .., before n_end
  int32_t n_step;          // 1 except where tiles are cut alike
  bool whole;              // it is all of the tile
  bool first;              // it is the first piece of its tile
  // Places on the line.
  int32_t tile_begin, tile_end, begin;
};

// Where the merging kernel finds the pieces of a tile, whose partial results are numbered.
struct SplitEntry {
  int32_t batch, kv_head, m_block;
  int32_t rows;                     // of the tile; 0: nothing to merge
  int32_t count;                    // pieces
  int32_t first_piece, next_piece;  // number of the first one and of the second one, which the others follow
  int32_t step;                     // between the numbers of those
  int32_t q_start;                  // first row of the sequence in q and out

  FLASH3_HD int32_t piece(int32_t i) const { return i == 0 ? first_piece : next_piece + (i - 1) * step; }
};

}  // namespace flash3::core
