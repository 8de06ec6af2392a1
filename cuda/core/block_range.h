// Which key blocks a tile of query rows visits, and which of them need no mask.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/mask.h"

namespace flash3::core {

// Blocks [begin, end) hold every key that any row of the tile sees. Of these, [full_begin, full_end) are visible as a
// whole to every row; the others need the mask. begin <= full_begin <= full_end <= end always; an empty range is
// begin == end, and full_begin == full_end means that every block is masked.
struct BlockRange {
  int32_t begin;
  int32_t end;
  int32_t full_begin;
  int32_t full_end;

  FLASH3_HD int32_t count() const { return end - begin; }
  FLASH3_HD bool is_full(int32_t n) const { return n >= full_begin && n < full_end; }
};

// For query rows [row_begin, row_end), row_end > row_begin, and blocks of block_n keys.
FLASH3_HD BlockRange block_range(const Mask &mask, int32_t row_begin, int32_t row_end, int32_t block_n) {
  // key_begin and key_end never decrease from row to row, so the first row has the leftmost window and the last row
  // the rightmost one.
  const int32_t key_begin = mask.key_begin(row_begin);
  const int32_t key_end = mask.key_end(row_end - 1);
  BlockRange r;
  r.begin = key_begin / block_n;
  r.end = key_end / block_n + (key_end % block_n != 0);
  if (key_begin >= key_end) {
    r.begin = r.end = r.full_begin = r.full_end = 0;
    return r;
  }
  const int32_t seen_by_all_begin = mask.key_begin(row_end - 1);
  const int32_t seen_by_all_end = mask.key_end(row_begin);
  r.full_begin = seen_by_all_begin / block_n + (seen_by_all_begin % block_n != 0);
  r.full_end = seen_by_all_end / block_n;
  if (r.full_begin < r.begin) r.full_begin = r.begin;
  if (r.full_begin > r.end) r.full_begin = r.end;
  if (r.full_end < r.full_begin) r.full_end = r.full_begin;
  return r;
}

// The masks of a tile's blocks, in a form from which that of each follows in a few 32-bit steps: the left edge as seen
// from the first block, the right one and the end of the sequence from the last block. To the other blocks they are
// farther away.
struct TileMask {
  BlockMask edges;

  FLASH3_HD static TileMask make(const Mask &mask, int64_t first_row, const BlockRange &blocks, int32_t block_n) {
    const BlockMask first = BlockMask::make(mask, first_row, int64_t{blocks.begin} * block_n);
    const BlockMask last = BlockMask::make(mask, first_row, (int64_t{blocks.end} - 1) * block_n);
    return {{first.begin, last.end, last.length}};
  }

  // Of block n of the same blocks, for rows from `row` on, counted from the first one of the tile.
  FLASH3_HD BlockMask of_block(int32_t n, int32_t row, const BlockRange &blocks, int32_t block_n) const {
    const int32_t right = BlockMask::no_farther(blocks.end - 1 - n, block_n);
    return {edges.begin - BlockMask::no_farther(n - blocks.begin, block_n) + row, edges.end + right + row,
            edges.length + right};
  }
};

// What some rows of a tile see of its blocks `all`, from the edges of TileMask: `seen_end` is where the keys end that
// the last one of these rows sees, `seen_by_all_end` where those end that the first one sees and so all of them, both
// counted from the first key of the last block. Neither function looks at the left edge of a window.
//
// The number of blocks at the end that none of the rows sees: not more than `most`, and never all.
FLASH3_HD int32_t hidden_blocks(const BlockRange &all, int32_t seen_end, int32_t block_n, int32_t most) {
  if (seen_end > 0 || all.count() <= 1) return 0;
  int32_t hidden = 1 + static_cast<int32_t>(static_cast<uint32_t>(-seen_end) / block_n);
  if (hidden > most) hidden = most;
  return hidden < all.count() ? hidden : all.count() - 1;
}
// Behind the last block that needs no mask for these rows.
FLASH3_HD int32_t full_end_of_rows(const BlockRange &all, int32_t seen_by_all_end, int32_t block_n) {
  if (seen_by_all_end >= block_n) return all.end;
  const auto behind = static_cast<uint32_t>(block_n - 1 - seen_by_all_end);
  const int32_t end = all.end - 1 - static_cast<int32_t>(behind / block_n);
  return end > all.full_end ? end : all.full_end;
}

// Fewer blocks than these are not worth a piece of their own.
inline constexpr int32_t kLeastPieceBlocks = 4;

// One of up to `most` pieces of about equal length. What pieces there are follows from the range alone: those behind
// them are empty.
FLASH3_HD BlockRange piece_of(const BlockRange &all, int32_t piece, int32_t most) {
  const int32_t worth = all.count() / kLeastPieceBlocks;
  const auto pieces = static_cast<uint32_t>(worth < 1 ? 1 : worth < most ? worth : most);
  const auto number = static_cast<uint32_t>(piece);
  if (number >= pieces) return {0, 0, 0, 0};
  // The first ones have one block more. In 32 bits, as a GPU divides anything else slowly.
  const uint32_t length = static_cast<uint32_t>(all.count()) / pieces;
  const uint32_t longer = static_cast<uint32_t>(all.count()) - length * pieces;
  BlockRange r;
  r.begin = all.begin + static_cast<int32_t>(number * length + (number < longer ? number : longer));
  r.end = r.begin + static_cast<int32_t>(length + (number < longer ? 1 : 0));
  const auto inside = [&r](int32_t n) { return n < r.begin ? r.begin : n > r.end ? r.end : n; };
  r.full_begin = inside(all.full_begin);
  r.full_end = inside(all.full_end);
  return r;
}

}  // namespace flash3::core
