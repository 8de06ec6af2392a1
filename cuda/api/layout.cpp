// The field table of flash3_params, for bindings that mirror the struct.
#include <cstddef>
#include <iterator>

#include "flash3.h"

// Every field in order. The checks below fail to compile when one is missing, misplaced or out of order.
#define FLASH3_PARAMS_FIELDS(X) \
  X(struct_size)                \
  X(abi_version)                \
  X(backend)                    \
  X(device)                     \
  X(dtype)                      \
  X(nheads)                     \
  X(nheads_k)                   \
  X(head_dim)                   \
  X(head_dim_v)                 \
  X(batch)                      \
  X(seqlen_q)                   \
  X(seqlen_k)                   \
  X(total_q)                    \
  X(total_k)                    \
  X(q)                          \
  X(k)                          \
  X(v)                          \
  X(out)                        \
  X(lse)                        \
  X(q_batch_stride)             \
  X(q_row_stride)               \
  X(q_head_stride)              \
  X(k_batch_stride)             \
  X(k_row_stride)               \
  X(k_head_stride)              \
  X(v_batch_stride)             \
  X(v_row_stride)               \
  X(v_head_stride)              \
  X(out_batch_stride)           \
  X(out_row_stride)             \
  X(out_head_stride)            \
  X(lse_batch_stride)           \
  X(lse_head_stride)            \
  X(cu_seqlens_q)               \
  X(cu_seqlens_k)               \
  X(seqused_q)                  \
  X(seqused_k)                  \
  X(max_seqlen_q)               \
  X(max_seqlen_k)               \
  X(softmax_scale)              \
  X(softcap)                    \
  X(window_left)                \
  X(window_right)               \
  X(alibi_slopes)               \
  X(alibi_batch_stride)         \
  X(sinks)                      \
  X(num_splits)                 \
  X(sm_margin)                  \
  X(num_threads)                \
  X(reserved)                   \
  X(workspace)                  \
  X(workspace_bytes)

namespace {

#define FLASH3_FIELD(name) {#name, offsetof(flash3_params, name), sizeof(flash3_params::name)},
constexpr flash3_field kFields[] = {FLASH3_PARAMS_FIELDS(FLASH3_FIELD)};
#undef FLASH3_FIELD

// No padding anywhere: each field starts where the one before ends, and the last ends with the struct. So a field that
// the list forgets leaves a gap.
constexpr bool covers_the_struct() {
  uint32_t end = 0;
  for (const flash3_field &field : kFields) {
    if (field.offset != end) return false;
    end += field.size;
  }
  return end == sizeof(flash3_params);
}
static_assert(covers_the_struct(), "FLASH3_PARAMS_FIELDS must name every field of flash3_params in order");
static_assert(sizeof(void *) == 8, "flash3_params is laid out for 64-bit pointers");

}  // namespace

extern "C" const flash3_field *flash3_params_layout(uint32_t *count) {
  if (count != nullptr) *count = static_cast<uint32_t>(std::size(kFields));
  return kFields;
}
