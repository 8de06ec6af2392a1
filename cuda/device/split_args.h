// What the split-KV kernel and the one that merges its partial results receive.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/mask.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"

namespace flash3::device {

// How key blocks come into shared memory.
enum class KeyLoads : int32_t {
  kTma,       // a block is one box: dense and packed keys, and pages that hold whole key blocks
  kAsyncCopy  // row by row: every other cache
};

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
    const auto nheads = static_cast<int64_t>(s.group.divisor) * s.nheads_k;
    return piece * rows_of_split + query * nheads + head;
  }

  // From there to that of the piece whose number is larger by `step`, of the same tile.
  FLASH3_HD int64_t stride(const core::SplitSchedule &s, int32_t step) const {
    return step * (s.balanced() ? tile_rows : rows_of_split);
  }
};

struct SplitArgs {
  CUtensorMap k_map, v_map, kv_zero_map;  // as in FwdArgs; paged: the batch entries are pages
  core::SplitSchedule schedule;
  KeyLoads key_loads;
  int32_t box_rows;      // latent attention: of a box of k_map
  bool follows_append;   // the kernel before writes new keys and rotated queries
  bool modifies_scores;  // softcap, ALiBi or a scale that is not positive

  TensorRows q, k, v, out;
  float *lse;  // may be NULL
  int64_t lse_batch_stride, lse_head_stride;
  bool packed_q;
  int64_t seqlen_q;  // dense q

  int32_t head_dim, head_dim_v;
  float scale;                // softmax_scale
  float scale_log2;           // softmax_scale * log2(e)
  float softcap;              // 0: off
  const float *alibi_slopes;  // may be NULL
  int64_t alibi_batch_stride;
  const float *sinks;  // may be NULL

  Partials partials;
};

}  // namespace flash3::device
