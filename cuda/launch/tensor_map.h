// Tensor maps for the copy engine (TMA).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/status.h"
#include "device/fwd_args.h"

namespace flash3::launch {

// One tensor as the kernels address it: (col, row, end, head, batch).
//
// "row" and "end" both step through the rows. Row r of a sequence of length len, whose last row is followed by tensor
// row `end`, has the coordinates row = rows - len + r, end = end: their sum minus `rows` is its place in the tensor,
// and since the bound of "row" is `rows`, everything behind the sequence is out of bounds: read as zero, never written.
// So the copy engine itself keeps packed sequences apart. (The idea of a second dimension over the same rows is that of
// Triton's ragged tensor descriptors.)
struct TensorView {
  const char *name;  // for messages
  device::TensorRows at;
  int64_t cols, rows, heads, batch;
};

struct BoxShape {
  int32_t cols, rows;
  int32_t swizzle_bytes;   // 128 or 64: the bytes of `cols`
  bool read_once = false;  // then L2 need not fetch more than is asked for
  // Of these heads each, whose rows alternate in the box. The coordinates of the map are (col, head, row, end, batch)
  // then. 0: one head, and the usual order.
  int32_t heads = 0;
};

// No box of this map may lie outside the tensor as a whole: the copy engine then reads at the map's base address, which
// the shift by `rows` has moved out of the tensor. For such boxes there is encode_zero_map.
core::Status encode_tensor_map(const TensorView &tensor, bool bfloat16, const BoxShape &box, CUtensorMap *map);

// A map that yields a box of zeros at every col >= 8. `data`: 16 bytes that may be read.
core::Status encode_zero_map(const void *data, bool bfloat16, const BoxShape &box, CUtensorMap *map);

}  // namespace flash3::launch
