// Everything about a call of flash3_combine that can be checked on the host.
#include <cstdint>

#include "core/dtype.h"
#include "core/validate.h"
#include "core/validate_parts.h"

namespace flash3::core {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

void check_sizes(const flash3_combine_params &p, Checker &check) {
  check.require(p.num_splits >= 1 && p.num_splits <= kMaxSplits, "num_splits", p.num_splits, "from 1 to ", kMaxSplits);
  check.require(p.batch >= 0, "batch", p.batch, "at least 0");
  check.require(p.nheads >= 1, "nheads", p.nheads, "at least 1");
  check.require(p.head_dim >= 1, "head_dim", p.head_dim, "at least 1");
  check.require(p.num_threads >= 0, "num_threads", p.num_threads, "at least 0 (0: all cores)");
  check_rows(check, "seqlen", p.seqlen, p.batch);
}

void check_tensors(const flash3_combine_params &p, Checker &check) {
  // clang-format off
  const Tensor out_partial = {"out_partial", p.out_partial, false,
                              {{"out_partial_split_stride", p.out_partial_split_stride, p.num_splits},
                               {"out_partial_batch_stride", p.out_partial_batch_stride, p.batch},
                               {"out_partial_row_stride", p.out_partial_row_stride, p.seqlen},
                               {"out_partial_head_stride", p.out_partial_head_stride, p.nheads}}};
  const Tensor lse_partial = {"lse_partial", p.lse_partial, false,
                              {{"lse_partial_split_stride", p.lse_partial_split_stride, p.num_splits},
                               {"lse_partial_batch_stride", p.lse_partial_batch_stride, p.batch},
                               {"lse_partial_row_stride", p.lse_partial_row_stride, p.seqlen},
                               {"lse_partial_head_stride", p.lse_partial_head_stride, p.nheads}}};
  const Tensor out = {"out", p.out, true,
                      {{"out_batch_stride", p.out_batch_stride, p.batch},
                       {"out_row_stride", p.out_row_stride, p.seqlen},
                       {"out_head_stride", p.out_head_stride, p.nheads}, {}}};
  const Tensor lse = {"lse", p.lse, true,
                      {{"lse_batch_stride", p.lse_batch_stride, p.batch},
                       {"lse_row_stride", p.lse_row_stride, p.seqlen},
                       {"lse_head_stride", p.lse_head_stride, p.nheads}, {}}};
  // clang-format on
  const bool cuda = p.backend == FLASH3_BACKEND_CUDA;
  check_tensor(check, out_partial, kFloatBytes, cuda);
  check_tensor(check, lse_partial, kFloatBytes, false);
  check_tensor(check, out, element_bytes(p.dtype), cuda);
  if (p.lse != nullptr) check_tensor(check, lse, kFloatBytes, false);
}

}  // namespace

Status validate_combine(const flash3_combine_params &params) {
  Checker check;
  check_version(params, "flash3_combine_params", check);
  if (check.ok()) check_backend(params, check);
  if (check.ok()) check_sizes(params, check);
  if (check.ok()) check_tensors(params, check);
  return check.status();
}

}  // namespace flash3::core
