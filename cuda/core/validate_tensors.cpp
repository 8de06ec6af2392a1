// Pointers and strides of a call.
#include <cstdint>
#include <initializer_list>

#include "core/dtype.h"
#include "core/validate.h"
#include "core/validate_parts.h"

namespace flash3::core {
namespace {

constexpr int64_t kTmaAlignment = 16;  // of addresses and strides in bytes

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

// cos and sin: (seqlen_rotary, rotary_dim / 2).
void check_rotary_tables(const flash3_params &p, Checker &check) {
  if (p.rotary_cos == nullptr) return;
  const Tensor tables[] = {
      {"rotary_cos", p.rotary_cos, false, {{"rotary_cos_row_stride", p.rotary_cos_row_stride, p.seqlen_rotary}}},
      {"rotary_sin", p.rotary_sin, false, {{"rotary_sin_row_stride", p.rotary_sin_row_stride, p.seqlen_rotary}}}};
  for (const Tensor &table : tables) {
    check_tensor(check, table, element_bytes(p.dtype), p.backend == FLASH3_BACKEND_CUDA);
  }
}

void check_new_rows(const flash3_params &p, Checker &check) {
  if (p.k_new == nullptr) return;
  const bool packed = p.cu_seqlens_k_new != nullptr;
  const int64_t batch = packed ? (p.batch > 0) : p.batch;
  const int64_t rows = packed ? p.total_k_new : p.seqlen_k_new;
  // clang-format off
  const Tensor k_new = {"k_new", p.k_new, false, {{"k_new_batch_stride", p.k_new_batch_stride, batch},
                                                  {"k_new_row_stride", p.k_new_row_stride, rows},
                                                  {"k_new_head_stride", p.k_new_head_stride, p.nheads_k}, {}}};
  const Tensor v_new = {"v_new", p.v_new, false, {{"v_new_batch_stride", p.v_new_batch_stride, batch},
                                                  {"v_new_row_stride", p.v_new_row_stride, rows},
                                                  {"v_new_head_stride", p.v_new_head_stride, p.nheads_k}, {}}};
  // clang-format on
  check_tensor(check, k_new, element_bytes(p.dtype), p.backend == FLASH3_BACKEND_CUDA);
  if (p.v_new != nullptr) check_tensor(check, v_new, element_bytes(p.dtype), p.backend == FLASH3_BACKEND_CUDA);
}

void check_arrays(const flash3_params &p, Checker &check) {
  const struct {
    const char *field;
    const void *data;
  } arrays[] = {{"cu_seqlens_q", p.cu_seqlens_q},
                {"cu_seqlens_k", p.cu_seqlens_k},
                {"seqused_q", p.seqused_q},
                {"seqused_k", p.seqused_k},
                {"cache_batch_idx", p.cache_batch_idx},
                {"cache_leftpad", p.cache_leftpad},
                {"page_table", p.page_table},
                {"cu_seqlens_k_new", p.cu_seqlens_k_new},
                {"rotary_seqlens", p.rotary_seqlens},
                {"alibi_slopes", p.alibi_slopes},
                {"sinks", p.sinks}};
  static_assert(sizeof(int32_t) == sizeof(float), "one alignment for all of them");
  for (const auto &array : arrays) check_pointer(check, array.field, array.data, sizeof(int32_t));
}

// The plainest way to write where others still read. Memory that overlaps in other ways is the caller's to know.
void check_apart(Checker &check, const Tensor &out, std::initializer_list<const Tensor *> read) {
  if (out.empty()) return;
  for (const Tensor *tensor : read) {
    check.require(tensor->empty() || out.data != tensor->data, "out", tensor->field, "memory of its own, since ",
                  tensor->field, " is read while out is written");
  }
}

// Batch entries of k and v, or pages.
int64_t entries_k(const flash3_params &p) {
  if (p.batch == 0) return 0;
  if (p.cu_seqlens_k != nullptr) return 1;
  if (p.page_table != nullptr) return p.num_pages;
  return p.cache_batch_idx != nullptr ? p.batch_cache : p.batch;
}

}  // namespace

bool Tensor::empty() const {
  for (const Dim &dim : dims) {
    if (dim.extent == 0) return true;
  }
  return false;
}

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

Status validate_tensors(const flash3_params &p) {
  const bool packed_q = p.cu_seqlens_q != nullptr;
  // A packed tensor has no batch dimension, but with batch 0 there is nothing to read in it either.
  const int64_t batch_q = packed_q ? (p.batch > 0) : p.batch;
  const int64_t rows_q = packed_q ? p.total_q : p.seqlen_q;
  const int64_t batch_k = entries_k(p);
  const int64_t rows_k = p.cu_seqlens_k != nullptr ? p.total_k : p.page_table != nullptr ? p.page_size : p.seqlen_k;
  const bool append = p.k_new != nullptr;
  // clang-format off
  const Tensor q = {"q", p.q, false, {{"q_batch_stride", p.q_batch_stride, batch_q},
                                      {"q_row_stride", p.q_row_stride, rows_q},
                                      {"q_head_stride", p.q_head_stride, p.nheads}, {}}};
  const Tensor k = {"k", p.k, append, {{"k_batch_stride", p.k_batch_stride, batch_k},
                                       {"k_row_stride", p.k_row_stride, rows_k},
                                       {"k_head_stride", p.k_head_stride, p.nheads_k}, {}}};
  const Tensor v = {"v", p.v, append, {{"v_batch_stride", p.v_batch_stride, batch_k},
                                       {"v_row_stride", p.v_row_stride, rows_k},
                                       {"v_head_stride", p.v_head_stride, p.nheads_k}, {}}};
  const Tensor out = {"out", p.out, true, {{"out_batch_stride", p.out_batch_stride, batch_q},
                                           {"out_row_stride", p.out_row_stride, rows_q},
                                           {"out_head_stride", p.out_head_stride, p.nheads}, {}}};
  // clang-format on
  Checker check;
  const bool cuda = p.backend == FLASH3_BACKEND_CUDA;
  check_tensor(check, q, element_bytes(p.dtype), cuda);
  check_tensor(check, k, element_bytes(p.dtype), cuda);
  if (p.v != nullptr) {
    check_tensor(check, v, element_bytes(p.dtype), cuda);
  } else if (!k.empty()) {
    check.require(p.head_dim_v <= p.head_dim, "head_dim_v", p.head_dim_v, "at most head_dim (", p.head_dim,
                  "), since v is NULL and its values are columns of k");
  }
  check_tensor(check, out, element_bytes(p.dtype), cuda);
  check_apart(check, out, {&q, &k, &v});
  check_lse(check, p, batch_q, rows_q);
  check_new_rows(p, check);
  check_rotary_tables(p, check);
  check_arrays(p, check);
  return check.status();
}

}  // namespace flash3::core
