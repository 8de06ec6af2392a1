// Which rows of a tile of packed rows (core/split_schedule.h) a thread of the consumers has.
#pragma once

#include <cstdint>

#include "core/split_schedule.h"

namespace flash3::device {

// The two rows of a thread in a tile of packed rows. A warp has 16 rows of the products. Of a tile with few rows it may
// compute eight, and the thread the first of its two: arithmetic on one row takes half as long.
struct PackedRows {
  int32_t first_row;  // of the thread's warp, in the tile; the rows are lane / 4 and lane / 4 + 8 behind it
  int32_t query[2];   // in the sequence
  int32_t head[2];
  bool exists[2];

  // Where row r of a tile lies among those of the products.
  static __device__ __forceinline__ int32_t place(int32_t r, bool few) { return few ? r / 8 * 16 + r % 8 : r; }

  __device__ __forceinline__ PackedRows(const core::SplitSchedule &s, const core::SplitPiece &piece, int32_t first,
                                        bool few = false)
      : first_row(first) {
    // With few rows the second one is one that the next warp computes.
    const int32_t tile_rows = s.tile_rows(piece.lengths, piece.m_block);
    const int32_t rows = few ? min(tile_rows, first_row + 8) : tile_rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t in_tile = index(r);
      exists[r] = in_tile < rows;
      // Rows behind the last one repeat it, so that what is read for them exists.
      const int64_t row = int64_t{piece.m_block} * s.block_m + min(in_tile, tile_rows - 1);
      query[r] = s.query(row);
      head[r] = static_cast<int32_t>(row - int64_t{query[r]} * s.group.divisor) + piece.kv_head * s.group.divisor;
    }
  }

  __device__ __forceinline__ int32_t index(int r) const { return first_row + threadIdx.x % 32 / 4 + 8 * r; }
};

}  // namespace flash3::device
