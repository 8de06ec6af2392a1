// Pointers and strides of a call.
#include <cstdint>

#include "core/checker.h"
#include "core/validate.h"

namespace flash3::core {
namespace {

// TMA, which loads and stores the tiles on the GPU, takes addresses and strides of whole 16 bytes, below 2^40.
constexpr int64_t kTmaAlignment = 16;
constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;

struct Dim {
  const char *field;  // of the stride
  int64_t stride;     // elements
  int64_t extent;
};

struct Tensor {
  const char *field;
  const void *data;
  Dim dims[3];
  bool written;

  bool empty() const { return dims[0].extent == 0 || dims[1].extent == 0 || dims[2].extent == 0; }
};

void check_pointer(Checker &check, const char *field, const void *pointer, int64_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  check.require(address % alignment == 0, field, address, "an address that is a multiple of ", alignment, " bytes");
}

void check_tensor(Checker &check, const Tensor &tensor, int64_t element_bytes, bool cuda) {
  if (tensor.empty()) return;
  check.require(tensor.data != nullptr, tensor.field, "NULL", "a pointer, since the tensor has elements");
  check_pointer(check, tensor.field, tensor.data, cuda ? kTmaAlignment : element_bytes);
  const int64_t max_stride = kMaxStrideBytes / element_bytes;
  const int64_t unit = kTmaAlignment / element_bytes;
  for (const Dim &dim : tensor.dims) {
    if (dim.extent <= 1) continue;  // never multiplied by anything but 0
    check.require(dim.stride > -max_stride && dim.stride < max_stride, dim.field, dim.stride, "below ", max_stride,
                  " elements");
    check.require(!tensor.written || dim.stride != 0, dim.field, 0, "other than 0, since its rows are written");
    if (!cuda) continue;
    check.require(dim.stride >= 0, dim.field, dim.stride, "at least 0 on the CUDA backend");
    check.require(dim.stride % unit == 0, dim.field, dim.stride, "a multiple of ", unit,
                  " elements (16 bytes) on the CUDA backend");
  }
}

void check_lse(Checker &check, const flash3_params &p, int64_t batch, int64_t rows) {
  if (p.lse == nullptr || batch == 0 || rows == 0) return;
  check_pointer(check, "lse", p.lse, sizeof(float));
  const auto check_stride = [&](const char *field, int64_t stride, int64_t extent) {
    if (extent <= 1) return;
    check.require(stride >= rows && stride < kMaxStrideBytes, field, stride, "at least ", rows,
                  ", the rows of q, and below 2^40");
  };
  check_stride("lse_batch_stride", p.lse_batch_stride, batch);
  check_stride("lse_head_stride", p.lse_head_stride, p.nheads);
}

}  // namespace

Status validate_tensors(const flash3_params &p) {
  const bool packed_q = p.cu_seqlens_q != nullptr;
  const bool packed_k = p.cu_seqlens_k != nullptr;
  // A packed tensor has no batch dimension, but with batch 0 there is nothing to read in it either.
  const int64_t batch_q = packed_q ? (p.batch > 0) : p.batch;
  const int64_t batch_k = packed_k ? (p.batch > 0) : p.batch;
  const int64_t rows_q = packed_q ? p.total_q : p.seqlen_q;
  const int64_t rows_k = packed_k ? p.total_k : p.seqlen_k;
  // clang-format off
  const Tensor tensors[] = {
      {"q", p.q, {{"q_batch_stride", p.q_batch_stride, batch_q},
                  {"q_row_stride", p.q_row_stride, rows_q},
                  {"q_head_stride", p.q_head_stride, p.nheads}}, false},
      {"k", p.k, {{"k_batch_stride", p.k_batch_stride, batch_k},
                  {"k_row_stride", p.k_row_stride, rows_k},
                  {"k_head_stride", p.k_head_stride, p.nheads_k}}, false},
      {"v", p.v, {{"v_batch_stride", p.v_batch_stride, batch_k},
                  {"v_row_stride", p.v_row_stride, rows_k},
                  {"v_head_stride", p.v_head_stride, p.nheads_k}}, false},
      {"out", p.out, {{"out_batch_stride", p.out_batch_stride, batch_q},
                      {"out_row_stride", p.out_row_stride, rows_q},
                      {"out_head_stride", p.out_head_stride, p.nheads}}, true},
  };
  // clang-format on
  Checker check;
  const int64_t element_bytes = p.dtype == FLASH3_FLOAT32 ? 4 : 2;
  for (const Tensor &tensor : tensors) {
    check_tensor(check, tensor, element_bytes, p.backend == FLASH3_BACKEND_CUDA);
  }
  check_lse(check, p, batch_q, rows_q);
  check_pointer(check, "cu_seqlens_q", p.cu_seqlens_q, sizeof(int32_t));
  check_pointer(check, "cu_seqlens_k", p.cu_seqlens_k, sizeof(int32_t));
  check_pointer(check, "seqused_q", p.seqused_q, sizeof(int32_t));
  check_pointer(check, "seqused_k", p.seqused_k, sizeof(int32_t));
  check_pointer(check, "alibi_slopes", p.alibi_slopes, sizeof(float));
  check_pointer(check, "sinks", p.sinks, sizeof(float));
  return check.status();
}

}  // namespace flash3::core
