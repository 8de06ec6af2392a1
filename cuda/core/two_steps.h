// Calls of packed sequences on a cache most of which have a single query, and some many: an engine's step that decodes
// and takes in a prompt. The first are the split-KV kernel's, the others the forward kernel's, and each is slow at what
// the other is for. So they are computed one behind the other, as two calls.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/split_config.h"
#include "core/workspace.h"
#include "flash3.h"

namespace flash3::core {

// Whether the call is one of these, as far as the longest sequence that the caller names says, and would be the
// split-KV kernel's as a whole: the forward kernel, which computes calls of more queries, takes as long for both, as
// measured. All sequences may turn out to be one or the other: that takes longer, and is no less right.
inline bool takes_two_steps(const flash3_params &p) {
  constexpr int64_t kLeastSingles = 8;
  const int64_t group = p.nheads / p.nheads_k;
  if (p.backend != FLASH3_BACKEND_CUDA || p.max_seqlen_q <= 1) return false;
  if (!has_kv_cache(p) || p.head_dim > kMostSplitDim || p.head_dim_v > kMostSplitDim) return false;
  flash3_params singles = p;
  singles.max_seqlen_q = kSinglesAlone;
  if (!is_packed_decoding(singles) || mean_queries(p) * group > SplitSchedule::kBlockM) return false;
  if (expected_queries(p) * group <= SplitSchedule::kBlockM) return false;
  const int64_t longer = least_longer_sequences(p);
  return p.batch - longer >= std::max(kLeastSingles, longer);
}

// The calls, whose workspace is part of that of the whole one.
struct TwoSteps {
  flash3_params singles, others;
  uint64_t bytes;  // of workspace

  static TwoSteps of(const flash3_params &p) {
    TwoSteps steps = {p, p, 0};
    steps.singles.max_seqlen_q = kSinglesAlone;
    steps.others.seqused_q = p.cu_seqlens_q;  // any, until it has a place
    const uint64_t of_singles = workspace_layout(steps.singles).bytes;
    const uint64_t of_both = of_singles + workspace_layout(steps.others).bytes;
    steps.bytes = of_both + padded(static_cast<uint64_t>(p.batch) * sizeof(int32_t));
    char *const workspace = static_cast<char *>(p.workspace);
    if (workspace == nullptr) return steps;
    steps.others.workspace = workspace + of_singles;
    steps.others.seqused_q = reinterpret_cast<const int32_t *>(workspace + of_both);
    return steps;
  }
  // Queries of each sequence, for the others.
  int32_t *queries_of_others() const { return const_cast<int32_t *>(others.seqused_q); }
};

}  // namespace flash3::core
