// What the split-KV kernel and the one that merges its partial results receive.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/mask.h"
#include "core/rotary.h"
#include "core/softcap.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/partials.h"

namespace flash3::device {

// How key blocks come into shared memory.
enum class KeyLoads : int32_t {
  kTma,       // a block is one box: dense and packed keys, and pages that hold whole key blocks
  kAsyncCopy  // row by row: every other cache
};

// Of calls whose new rows the kernel writes itself (core::appends_itself); otherwise all of it is 0.
struct NewRows {
  TensorRows k, v;      // where they come from
  core::Rotary rotary;  // of K and q
};

struct SplitArgs {
  CUtensorMap k_map, v_map, kv_zero_map;  // as in FwdArgs; paged: the batch entries are pages
  core::SplitSchedule schedule;
  KeyLoads key_loads;
  int32_t stages;        // of a ring of key blocks, where kernels have several sizes
  int32_t passing_cost;  // lines of up to this cost pass through L2 and leave in it what is there
  int32_t box_rows;      // latent attention: of a box of k_map
  bool follows_append;   // the kernel before writes new keys and rotated queries
  bool few_rows;         // tiles have at most core::kFewRows
  bool modifies_scores;  // softcap, ALiBi or a scale that is not positive

  TensorRows q, k, v, out;
  float *lse;  // may be NULL
  int64_t lse_batch_stride, lse_head_stride;
  bool packed_q;
  int64_t seqlen_q;  // dense q

  int32_t head_dim, head_dim_v;
  float scale;       // softmax_scale
  float scale_log2;  // softmax_scale * log2(e)
  float softcap;     // 0: off
  core::SoftcapPolynomial softcap_polynomial;
  const float *alibi_slopes;  // may be NULL
  int64_t alibi_batch_stride;
  const float *sinks;  // may be NULL
  uint32_t zero;       // 0, but the compiler does not know that

  Partials partials;
  NewRows new_rows;
  // Where another kernel computes what SplitSchedule::leaves_longer: (batch), what queries it has of each sequence.
  int32_t *others;
};

}  // namespace flash3::device
