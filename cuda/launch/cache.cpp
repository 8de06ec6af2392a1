#include "launch/cache.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "core/workspace.h"
#include "launch/tensor_map.h"

namespace flash3::launch {
namespace {

using device::CacheLoads;

// Smaller boxes keep the copy engine busier than four warps are with copying rows. A multiple of 8 rows in any case,
// since the pattern in shared memory repeats after so many.
constexpr int32_t kLeastBoxRows = 16;

// Rows that follow each other in a page wherever a key block begins.
int32_t rows_of_box(const flash3_params &p, const FwdKernel &kernel) {
  if (p.page_table == nullptr) return kernel.block_n;
  const int32_t rows = p.cache_leftpad != nullptr ? 1 : std::gcd(p.page_size, kernel.block_n);
  return rows % 8 == 0 && rows >= kLeastBoxRows ? rows : 1;
}

}  // namespace

device::TensorRows given_queries(const flash3_params &p) {
  return {p.q, p.cu_seqlens_q != nullptr ? 0 : p.q_batch_stride, p.q_row_stride, p.q_head_stride};
}

device::TensorRows queries(const flash3_params &p) {
  if (p.rotary_cos == nullptr) return given_queries(p);
  const bool packed = p.cu_seqlens_q != nullptr;
  const int64_t row = int64_t{p.nheads} * p.head_dim;
  return {static_cast<char *>(p.workspace) + core::workspace_layout(p).rotated_q, packed ? 0 : p.seqlen_q * row, row,
          p.head_dim};
}

core::Status set_cache(const flash3_params &p, const FwdKernel &kernel, device::FwdArgs *args) {
  const bool bf16 = p.dtype == FLASH3_BFLOAT16;
  const bool paged = p.page_table != nullptr;
  args->cache = core::KvCache::of(p);
  args->box_rows = rows_of_box(p, kernel);
  args->boxes_of_block = kernel.block_n / args->box_rows;
  args->cache_loads = !paged ? CacheLoads::kBlocks : args->box_rows > 1 ? CacheLoads::kPages : CacheLoads::kRows;
  args->loading_warps = std::min(args->boxes_of_block, 2);
  args->page_step = core::PageStep::make(kernel.block_n, paged ? p.page_size : 0);
  const int64_t rows = paged ? p.page_size : args->cache.filled.rows;
  if (args->cache_loads == CacheLoads::kRows || rows == 0) {
    // Nothing will be loaded through them, but the kernel prefetches the maps.
    args->k_map = args->v_map = args->q_map;
    return {};
  }
  const int64_t entries = paged ? p.num_pages : p.cache_batch_idx != nullptr ? p.batch_cache : p.batch;
  const BoxShape box{kernel.box_cols, args->box_rows, kernel.swizzle_bytes};
  core::Status status =
      encode_tensor_map({"k", args->k, p.head_dim, rows, p.nheads_k, entries}, bf16, box, &args->k_map);
  if (status.ok()) {
    status = encode_tensor_map({"v", args->v, p.head_dim_v, rows, p.nheads_k, entries}, bf16, box, &args->v_map);
  }
  if (status.ok()) status = encode_zero_map(p.q, bf16, box, &args->kv_zero_map);
  return status;
}

}  // namespace flash3::launch
