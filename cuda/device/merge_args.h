// What the kernel that merges partial results receives.
#pragma once

#include <cstdint>

#include "core/divisor.h"
#include "device/split_args.h"

namespace flash3::device {

struct MergeArgs {
  int32_t warps_of_row;  // that share its pieces: a power of two
  // Of a balanced schedule:
  int32_t first_entry;          // those before it have nothing to merge
  core::Divisor rows_of_entry;  // at most
  int32_t num_items;            // rows of all entries from there on
  core::SplitSchedule schedule;
  Partials partials;
  TensorRows out;
  float *lse;  // may be NULL
  int64_t lse_batch_stride, lse_head_stride;
  bool packed_q;
  int64_t seqlen_q;
  int32_t head_dim_v;
  const float *sinks;  // may be NULL
};

}  // namespace flash3::device
