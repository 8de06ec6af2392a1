// Rotary embedding: the positions at which it turns the rows of a sequence, and what of a row it turns how.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/seqlen.h"
#include "flash3.h"

namespace flash3::core {

struct RotaryPositions {
  const int32_t *base;  // (batch): position of the first new row of each sequence; NULL: no rotary embedding
  int64_t rows;         // of the tables of cosines and sines, at least 1
  bool q_advances;      // otherwise all query rows of a sequence have the position of its first one

  // params have passed validate.
  static RotaryPositions of(const flash3_params &p) {
    if (p.rotary_cos == nullptr) return {nullptr, 0, false};
    return {p.rotary_seqlens != nullptr ? p.rotary_seqlens : p.seqused_k, p.seqlen_rotary,
            p.window_left >= 0 || p.window_right >= 0};
  }

  // Rows of the tables, whatever base holds.
  FLASH3_HD int64_t of_new_row(int32_t b, int64_t t) const { return SeqSide::clamp(base[b] + t, 0, rows - 1); }
  FLASH3_HD int64_t of_query_row(int32_t b, int64_t i) const { return of_new_row(b, q_advances ? i : 0); }
};

struct Rotary {
  RotaryPositions positions;
  const void *cos, *sin;
  int64_t cos_row_stride, sin_row_stride;
  int32_t columns;  // that are turned, the first ones of a row; 0: none
  int32_t half;     // columns from one of a pair to the other where the pairs are halves; 0: they are neighbours

  // params have passed validate.
  static Rotary of(const flash3_params &p) {
    if (p.rotary_cos == nullptr) return {};
    return {RotaryPositions::of(p),
            p.rotary_cos,
            p.rotary_sin,
            p.rotary_cos_row_stride,
            p.rotary_sin_row_stride,
            p.rotary_dim,
            p.rotary_interleaved == 0 ? p.rotary_dim / 2 : 0};
  }
};

}  // namespace flash3::core
