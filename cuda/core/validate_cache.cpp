// The cache, the rows appended to it and rotary embedding, as far as they are no tensors.
#include <cstdint>

#include "core/checker.h"
#include "core/validate_parts.h"

namespace flash3::core {
namespace {

struct Given {
  const char *field;
  const void *pointer;
};

// What goes with dense and paged k alone.
void check_layout(const flash3_params &p, Checker &check) {
  const Given given[] = {{"page_table", p.page_table},
                         {"cache_batch_idx", p.cache_batch_idx},
                         {"cache_leftpad", p.cache_leftpad},
                         {"k_new", p.k_new},
                         {"v_new", p.v_new},
                         {"rotary_cos", p.rotary_cos},
                         {"rotary_sin", p.rotary_sin}};
  for (const Given &part : given) {
    if (part.pointer == nullptr) continue;
    check.require(p.cu_seqlens_k == nullptr, part.field, "given", "NULL with cu_seqlens_k, whose keys are packed");
  }
}

void check_pages(const flash3_params &p, Checker &check) {
  check.require(p.cache_batch_idx == nullptr || p.batch_cache >= 1, "batch_cache", p.batch_cache, "at least 1");
  if (p.page_table == nullptr) return;
  check.require(p.page_size >= 1, "page_size", p.page_size, "at least 1");
  check.require(p.num_pages >= 1, "num_pages", p.num_pages, "at least 1");
  check.require(p.max_pages >= 1, "max_pages", p.max_pages, "at least 1");
  if (!check.ok()) return;
  const int64_t most = kMaxRows / p.page_size;
  check.require(p.num_pages <= most, "num_pages", p.num_pages, "at most ", most, ", since pages of ", p.page_size,
                " rows share ", kMaxRows, " rows");
  check.require(p.max_pages <= most, "max_pages", p.max_pages, "at most ", most, ", since a sequence has at most ",
                kMaxRows, " rows");
  check.require(p.page_table_batch_stride >= 0 && p.page_table_batch_stride < kMaxStrideBytes,
                "page_table_batch_stride", p.page_table_batch_stride, "at least 0 and below 2^40");
}

void check_append(const flash3_params &p, Checker &check) {
  check.require(p.k_new == nullptr || p.v_new != nullptr || p.v == nullptr, "v_new", "NULL", "given, since k_new is");
  check.require(p.v_new == nullptr || p.v != nullptr, "v_new", "given", "NULL, since v is");
  check.require(p.v_new == nullptr || p.k_new != nullptr, "k_new", "NULL", "given, since v_new is");
  if (p.k_new == nullptr) return;
  check.require(p.seqused_k != nullptr, "seqused_k", "NULL", "given with k_new: it says where the new rows go");
  if (p.cu_seqlens_k_new != nullptr) {
    check_rows(check, "total_k_new", p.total_k_new, 1);
  } else {
    check_rows(check, "seqlen_k_new", p.seqlen_k_new, p.batch);
  }
}

void check_rotary(const flash3_params &p, Checker &check) {
  check.require(p.rotary_cos == nullptr || p.rotary_sin != nullptr, "rotary_sin", "NULL", "given, since rotary_cos is");
  check.require(p.rotary_sin == nullptr || p.rotary_cos != nullptr, "rotary_cos", "NULL", "given, since rotary_sin is");
  if (p.rotary_cos == nullptr) return;
  check.require(p.rotary_seqlens != nullptr || p.seqused_k != nullptr, "rotary_seqlens", "NULL",
                "given with rotary_cos, unless seqused_k is");
  check.require(p.rotary_dim >= 16 && p.rotary_dim % 16 == 0 && p.rotary_dim <= p.head_dim, "rotary_dim", p.rotary_dim,
                "a multiple of 16 from 16 to head_dim (", p.head_dim, ")");
  check.require(p.seqlen_rotary >= 1 && p.seqlen_rotary <= kMaxRows, "seqlen_rotary", p.seqlen_rotary, "from 1 to ",
                kMaxRows);
  check.require(p.rotary_interleaved == 0 || p.rotary_interleaved == 1, "rotary_interleaved", p.rotary_interleaved,
                "0 or 1");
}

}  // namespace

void check_cache(const flash3_params &params, Checker &check) {
  for (const auto step : {check_layout, check_pages, check_append, check_rotary}) {
    step(params, check);
    if (!check.ok()) return;
  }
}

}  // namespace flash3::core
