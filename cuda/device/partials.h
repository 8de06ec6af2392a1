// Where the partial results of a call lie whose keys are computed in pieces.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/split_schedule.h"

namespace flash3::device {

// Partial results, float32: of a piece and row, normalised, and their log-sum-exp.
struct Partials {
  float *out;                 // (rows of partial results, head_dim_v)
  float *lse;                 // (rows of partial results)
  core::SplitEntry *entries;  // of a balanced schedule, by part
  int32_t tile_rows;          // rows that a piece of a balanced schedule has
  int64_t rows_of_split;      // of a fixed number of splits: query rows * nheads

  // The place of packed row r of a tile in a piece. query: of the row, in q and out; dense q lies like packed q here.
  FLASH3_HD int64_t row(const core::SplitSchedule &s, int32_t piece, int32_t r, int64_t query, int32_t head) const {
    if (s.balanced()) return int64_t{piece} * tile_rows + r;
    return row_of_split(piece, query, head, static_cast<int32_t>(s.group.divisor) * s.nheads_k);
  }
  FLASH3_HD int64_t row_of_split(int32_t piece, int64_t query, int32_t head, int32_t nheads) const {
    return piece * rows_of_split + query * nheads + head;
  }

  // From there to that of the piece whose number is larger by `step`, of the same tile.
  FLASH3_HD int64_t stride(const core::SplitSchedule &s, int32_t step) const {
    return step * (s.balanced() ? tile_rows : rows_of_split);
  }
};

}  // namespace flash3::device
