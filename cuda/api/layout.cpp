// The field tables of the structs of flash3.h, for bindings that mirror them.
#include <cstddef>
#include <cstdint>

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
  X(cache_batch_idx)            \
  X(cache_leftpad)              \
  X(page_table)                 \
  X(page_table_batch_stride)    \
  X(batch_cache)                \
  X(page_size)                  \
  X(num_pages)                  \
  X(max_pages)                  \
  X(k_new)                      \
  X(v_new)                      \
  X(k_new_batch_stride)         \
  X(k_new_row_stride)           \
  X(k_new_head_stride)          \
  X(v_new_batch_stride)         \
  X(v_new_row_stride)           \
  X(v_new_head_stride)          \
  X(cu_seqlens_k_new)           \
  X(seqlen_k_new)               \
  X(total_k_new)                \
  X(rotary_cos)                 \
  X(rotary_sin)                 \
  X(rotary_cos_row_stride)      \
  X(rotary_sin_row_stride)      \
  X(rotary_seqlens)             \
  X(seqlen_rotary)              \
  X(rotary_dim)                 \
  X(rotary_interleaved)         \
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

#define FLASH3_COMBINE_PARAMS_FIELDS(X) \
  X(struct_size)                        \
  X(abi_version)                        \
  X(backend)                            \
  X(device)                             \
  X(dtype)                              \
  X(num_splits)                         \
  X(batch)                              \
  X(nheads)                             \
  X(head_dim)                           \
  X(num_threads)                        \
  X(seqlen)                             \
  X(out_partial)                        \
  X(lse_partial)                        \
  X(out)                                \
  X(lse)                                \
  X(out_partial_split_stride)           \
  X(out_partial_batch_stride)           \
  X(out_partial_row_stride)             \
  X(out_partial_head_stride)            \
  X(lse_partial_split_stride)           \
  X(lse_partial_batch_stride)           \
  X(lse_partial_row_stride)             \
  X(lse_partial_head_stride)            \
  X(out_batch_stride)                   \
  X(out_row_stride)                     \
  X(out_head_stride)                    \
  X(lse_batch_stride)                   \
  X(lse_row_stride)                     \
  X(lse_head_stride)

namespace {

#define FLASH3_FIELD(name) {#name, offsetof(flash3_params, name), sizeof(flash3_params::name)},
constexpr flash3_field kFields[] = {FLASH3_PARAMS_FIELDS(FLASH3_FIELD)};
#undef FLASH3_FIELD
#define FLASH3_FIELD(name) {#name, offsetof(flash3_combine_params, name), sizeof(flash3_combine_params::name)},
constexpr flash3_field kCombineFields[] = {FLASH3_COMBINE_PARAMS_FIELDS(FLASH3_FIELD)};
#undef FLASH3_FIELD

// No padding anywhere: each field starts where the one before ends, and the last ends with the struct. So a field that
// the list forgets leaves a gap.
template <class Struct, size_t kCount>
constexpr bool covers(const flash3_field (&fields)[kCount]) {
  uint32_t end = 0;
  for (const flash3_field &field : fields) {
    if (field.offset != end) return false;
    end += field.size;
  }
  return end == sizeof(Struct);
}
static_assert(covers<flash3_params>(kFields), "FLASH3_PARAMS_FIELDS must name every field of flash3_params in order");
static_assert(covers<flash3_combine_params>(kCombineFields),
              "FLASH3_COMBINE_PARAMS_FIELDS must name every field of flash3_combine_params in order");
static_assert(sizeof(void *) == 8, "the structs are laid out for 64-bit pointers");

template <size_t kCount>
const flash3_field *table(const flash3_field (&fields)[kCount], uint32_t *count) {
  if (count != nullptr) *count = static_cast<uint32_t>(kCount);
  return fields;
}

}  // namespace

extern "C" {

const flash3_field *flash3_params_layout(uint32_t *count) { return table(kFields, count); }

const flash3_field *flash3_combine_params_layout(uint32_t *count) { return table(kCombineFields, count); }

}  // extern "C"
