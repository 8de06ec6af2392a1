// Where the rows of one sequence lie, from the length arrays of a call. Every value that comes from device memory is
// clamped to the arrays of the call, so that a wrong cu_seqlens or seqused can never lead outside them.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace flash3::core {

struct SeqSpan {
  int64_t start;  // first row inside the packed tensor; 0 for dense tensors, whose batch entry is a coordinate
  int32_t len;    // rows in use
};

// One side (q or k) of a call.
struct SeqSide {
  const int32_t *cu_seqlens;  // NULL: dense
  const int32_t *seqused;     // NULL: every row is in use
  int64_t rows;               // dense: rows of each batch entry; packed: rows of the whole tensor

  FLASH3_HD SeqSpan span(int32_t b) const {
    int64_t begin = 0;
    int64_t end = rows;
    if (cu_seqlens != nullptr) {
      begin = clamp(cu_seqlens[b], 0, rows);
      end = clamp(cu_seqlens[b + 1], begin, rows);
    }
    if (seqused != nullptr) {
      end = clamp(begin + seqused[b], begin, end);
    }
    return {begin, static_cast<int32_t>(end - begin)};
  }

  FLASH3_HD static int64_t clamp(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : (x > hi ? hi : x); }
};

}  // namespace flash3::core
