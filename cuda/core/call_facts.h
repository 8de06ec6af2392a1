// What several choices ask of a call. params have passed validate and have at least one sequence.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/seqlen.h"
#include "flash3.h"

namespace flash3::core {

// The rows of q.
inline SeqSide q_side(const flash3_params &p) {
  return {p.cu_seqlens_q, p.seqused_q, p.cu_seqlens_q != nullptr ? p.total_q : p.seqlen_q};
}

// Queries of a sequence, of packed ones on average: their lengths are in device memory.
inline int64_t mean_queries(const flash3_params &p) {
  return p.cu_seqlens_q != nullptr ? (p.total_q + p.batch - 1) / p.batch : p.seqlen_q;
}

// Keys that a sequence has room for, and that one has at most as far as the caller says, who may be wrong. Not of
// packed keys.
inline int64_t key_capacity(const flash3_params &p) {
  return p.page_table != nullptr ? int64_t{p.max_pages} * p.page_size : p.seqlen_k;
}
inline int64_t most_keys(const flash3_params &p) {
  return p.max_seqlen_k > 0 ? std::min(p.max_seqlen_k, key_capacity(p)) : key_capacity(p);
}

// Of packed sequences, how many must have more than one query if none has more than max_seqlen_q, which is above 1; one
// in any case.
inline int64_t least_longer_sequences(const flash3_params &p) {
  const int64_t more = p.total_q - p.batch;
  return more > 0 ? (more - 1) / (p.max_seqlen_q - 1) + 1 : 1;
}

// How many sequences of how many queries a call is counted as where its kernel is chosen. Where not all rows of packed
// sequences are in use, they are counted as the longer ones of single queries and longer sequences (core::TwoSteps).
struct CountedQueries {
  int64_t sequences, queries;

  static CountedQueries of(const flash3_params &p) {
    const bool in_part = p.cu_seqlens_q != nullptr && p.seqused_q != nullptr;
    if (!in_part || p.max_seqlen_q <= mean_queries(p)) return {p.batch, mean_queries(p)};
    return {least_longer_sequences(p), std::min(p.max_seqlen_q, p.total_q)};
  }
};

inline bool has_device_lengths(const flash3_params &p) {
  return p.cu_seqlens_q != nullptr || p.cu_seqlens_k != nullptr || p.seqused_q != nullptr || p.seqused_k != nullptr;
}

// Whether scores are more than the product times a factor that does not turn their order around: the softmax of the
// plain kernels relies on that.
inline bool modifies_scores(const flash3_params &p) {
  return p.softcap > 0.f || p.alibi_slopes != nullptr || !(p.softmax_scale > 0.f);
}

// Whether a softcap is all that they are modified by.
inline bool has_softcap_alone(const flash3_params &p) { return p.softcap > 0.f && p.alibi_slopes == nullptr; }

}  // namespace flash3::core
