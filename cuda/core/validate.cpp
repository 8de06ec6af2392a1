#include "core/validate.h"

#include <cmath>
#include <cstdint>

#include "core/checker.h"
#include "core/constants.h"
#include "core/validate_parts.h"
#include "core/workspace.h"

namespace flash3::core {
namespace {

void check_kind(const flash3_params &p, Checker &check) {
  check_version(p, "flash3_params", check);
  if (!check.ok()) return;
  check_backend(p, check);
  check.require_or(FLASH3_UNSUPPORTED, !(p.backend == FLASH3_BACKEND_CUDA && p.dtype == FLASH3_FLOAT32), "dtype",
                   "2 (float32)", "0 (float16) or 1 (bfloat16) on the CUDA backend");
}

void check_heads(const flash3_params &p, Checker &check) {
  check.require(p.nheads >= 1, "nheads", p.nheads, "at least 1");
  check.require(p.nheads_k >= 1, "nheads_k", p.nheads_k, "at least 1");
  if (!check.ok()) return;
  check.require(p.nheads % p.nheads_k == 0, "nheads", p.nheads, "a multiple of nheads_k (", p.nheads_k, ")");
  const auto check_dim = [&](const char *field, int32_t dim, int32_t most) {
    check.require(dim >= 8 && dim % 8 == 0, field, dim, "a multiple of 8 from 8 to ", most);
    check.require_or(FLASH3_UNSUPPORTED, dim <= most, field, dim, "a multiple of 8 from 8 to ", most);
  };
  check_dim("head_dim", p.head_dim, kMaxHeadDim);
  check_dim("head_dim_v", p.head_dim_v, kMaxHeadDimV);
}

void check_sizes(const flash3_params &p, Checker &check) {
  check.require(p.batch >= 0, "batch", p.batch, "at least 0");
  if (p.cu_seqlens_q != nullptr) {
    check_rows(check, "total_q", p.total_q, 1);
  } else {
    check_rows(check, "seqlen_q", p.seqlen_q, p.batch);
  }
  if (p.cu_seqlens_k != nullptr) {
    check_rows(check, "total_k", p.total_k, 1);
  } else if (p.page_table == nullptr) {
    check_rows(check, "seqlen_k", p.seqlen_k, p.cache_batch_idx != nullptr ? p.batch_cache : p.batch);
  }
  check.require(p.max_seqlen_q >= 0, "max_seqlen_q", p.max_seqlen_q, "at least 0 (0: unknown)");
  check.require(p.max_seqlen_k >= 0, "max_seqlen_k", p.max_seqlen_k, "at least 0 (0: unknown)");
}

void check_scores(const flash3_params &p, Checker &check) {
  // The kernels work with exp2, hence with softmax_scale * log2(e).
  check.require(std::isfinite(p.softmax_scale * kLog2e), "softmax_scale", p.softmax_scale,
                "finite, also after multiplication by log2(e)");
  check.require(std::isfinite(p.softcap) && p.softcap >= 0.0f, "softcap", p.softcap, "finite and at least 0 (0: off)");
  check.require(p.softcap == 0.0f || std::isfinite(p.softmax_scale / p.softcap), "softcap", p.softcap,
                "0 or so large that softmax_scale (", p.softmax_scale, ") / softcap is finite");
  check.require(p.window_left >= -1, "window_left", p.window_left, "at least -1 (-1: unlimited)");
  check.require(p.window_right >= -1, "window_right", p.window_right, "at least -1 (-1: unlimited)");
  check.require(p.alibi_slopes == nullptr || p.alibi_batch_stride == 0 || p.alibi_batch_stride >= p.nheads,
                "alibi_batch_stride", p.alibi_batch_stride, "0 or at least nheads (", p.nheads, ")");
}

void check_execution(const flash3_params &p, Checker &check) {
  check.require(p.num_splits >= 0 && p.num_splits <= kMaxSplits, "num_splits", p.num_splits, "from 0 to ", kMaxSplits,
                " (0: the library chooses)");
  check.require(p.sm_margin >= 0, "sm_margin", p.sm_margin, "at least 0");
  check.require(p.num_threads >= 0, "num_threads", p.num_threads, "at least 0 (0: all cores)");
  check.require(p.reserved == 0, "reserved", p.reserved, "0");
}

}  // namespace

void check_rows(Checker &check, const char *field, int64_t rows, int32_t entries) {
  check.require(rows >= 0 && rows <= kMaxRows, field, rows, "from 0 to ", kMaxRows);
  const int64_t most = kMaxRows / (entries > 0 ? entries : 1);
  check.require(rows <= most, field, rows, "at most ", most, ", since ", entries, " batch entries share ", kMaxRows,
                " rows");
}

Status validate_problem(const flash3_params &params) {
  Checker check;
  for (const auto step : {check_kind, check_heads, check_sizes, check_cache, check_scores, check_execution}) {
    step(params, check);
    if (!check.ok()) break;
  }
  return check.status();
}

Status validate_workspace(const flash3_params &params) {
  const uint64_t needed = workspace_layout(params).bytes;
  if (needed == 0) return {};
  const auto address = reinterpret_cast<uintptr_t>(params.workspace);
  Checker check;
  check.require_or(FLASH3_BAD_WORKSPACE, params.workspace != nullptr, "workspace", "NULL", "memory of at least ",
                   needed, " bytes");
  check.require_or(FLASH3_BAD_WORKSPACE, address % kWorkspaceAlignment == 0, "workspace", address, "a multiple of ",
                   kWorkspaceAlignment, " bytes");
  check.require_or(FLASH3_BAD_WORKSPACE, params.workspace_bytes >= needed, "workspace_bytes", params.workspace_bytes,
                   "at least ", needed);
  return check.status();
}

Status validate(const flash3_params &params) {
  for (const auto step : {validate_problem, validate_tensors, validate_workspace}) {
    Status status = step(params);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace flash3::core
