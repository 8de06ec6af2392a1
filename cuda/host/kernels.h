// The inner loops of the host engine, compiled once per instruction set.
//
// Rows are lanes: a group of query rows is worked on transposed, so that each vector register holds one quantity of
// many rows. Scores of one key, row maxima and sums, one column of the output: all are plain vectors, no reduction ever
// crosses lanes, and K and V enter as broadcast scalars in the order in which they lie in memory.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace flash3::host {

// Buffers are aligned to this, and hold whole vectors of every instruction set.
inline constexpr int32_t kBufferAlignment = 64;
// Rows of the widest Group.
inline constexpr int32_t kMaxGroupRows = 32;
// Keys of a block. K and V buffers hold this many rows.
inline constexpr int32_t kBlockN = 64;

// One group of query rows with its running softmax. Everything is float32; [rows] means `width` entries.
struct Group {
  int32_t width;         // group_rows or narrow_rows of the kernels
  float *q;              // (head_dim, rows): transposed, 0 in rows that do not exist
  float *out;            // (head_dim_v, rows): not yet divided by row_sum
  float *row_max;        // (rows)
  float *row_sum;        // (rows)
  int32_t *key_begin;    // (rows): keys [key_begin, key_end) of the sequence are visible
  int32_t *key_end;      // (rows)
  int32_t *diagonal;     // (rows): key under the diagonal
  float *alibi_slope;    // (rows), read only if options.alibi
  float *probabilities;  // (kBlockN, rows): scratch; after update(), exp(s - row_max) of the block
};

// Some consecutive keys of a sequence.
struct KeyBlock {
  const float *k;     // (kBlockN, head_dim); rows from `keys` on may hold anything finite
  const float *v;     // (kBlockN, head_dim_v)
  int32_t first_key;  // number of row 0 in the sequence
  int32_t keys;       // 1 .. kBlockN
  bool masked;        // some key is invisible to some row
};

struct ScoreOptions {
  int32_t head_dim;
  int32_t head_dim_v;
  float scale;
  float softcap;  // 0: off
  bool alibi;
};

struct Kernels {
  const char *name;
  int32_t group_rows;   // rows of a Group
  int32_t narrow_rows;  // rows of one that is a single vector wide: for decoding, and for the last rows

  // One step of online softmax: scores of the block, new maxima and sums, out = out * correction + p * v.
  void (*update)(const Group &group, const KeyBlock &block, const ScoreOptions &options);

  // Copies rows of a tensor into dst (rows, columns) as float32. Returns whether all of them are finite. row_stride
  // counts elements; dtype is a flash3_dtype.
  bool (*load_rows)(int32_t dtype, const void *src, int64_t row_stride, int32_t rows, int32_t columns, float *dst);
};

// The fastest kernels this CPU runs, or those named by the environment variable FLASH3_HOST_ISA ("baseline", "avx2",
// "avx512": for tests). FLASH3_UNSUPPORTED for a name that this CPU or this build does not have.
core::Status select_kernels(const Kernels **kernels);

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace flash3::host
