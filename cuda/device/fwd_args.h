// What the forward kernel receives: flash3_params reduced to what the device reads, and the tensor maps.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/divisor.h"
#include "core/kv_cache.h"
#include "core/macros.h"
#include "core/mask.h"
#include "core/monic_softcap.h"
#include "core/page_walk.h"
#include "core/seqlen.h"
#include "core/softcap.h"
#include "core/tile_scheduler.h"
#include "device/partials.h"

namespace flash3::device {

// A tensor by pointer, for the few accesses that do not go through a tensor map. Strides in elements; the batch stride
// of a packed tensor is 0.
struct TensorRows {
  const void *data;
  int64_t batch_stride, row_stride, head_stride;
};

// First element of row `row` (of the batch entry, or of the whole packed tensor) of a head.
template <class Element>
FLASH3_HD const Element *row_of(const TensorRows &t, int64_t batch, int64_t row, int64_t head) {
  return static_cast<const Element *>(t.data) + batch * t.batch_stride + row * t.row_stride + head * t.head_stride;
}

// How the keys of a cache come into shared memory.
enum class CacheLoads : int32_t {
  kBlocks,  // a key block is one box of the copy engine: dense
  kPages,   // several boxes of FwdArgs::box_rows keys, none of which crosses a page
  kRows     // row by row, by asynchronous copies: smaller pages, and left padding in pages
};

struct FwdArgs {
  // (col, row, end, head, batch); see launch/tensor_map.h for what the third coordinate does.
  CUtensorMap q_map, k_map, v_map, out_map;
  // Zeros in the box shapes of Q and of K and V, for column blocks that lie outside the head dim as a whole.
  CUtensorMap q_zero_map, kv_zero_map;

  core::SeqSide q_side, k_side;
  core::Window window;

  TensorRows q, k, v, out;
  float *lse;  // may be NULL
  int64_t lse_batch_stride, lse_head_stride;

  int32_t batch, nheads, group;  // group: query heads per KV head
  int32_t head_dim, head_dim_v;
  int32_t num_m_blocks;  // dense q: of every sequence; packed q, short sequences: those shared out to blocks
  int32_t num_tiles;     // num_m_blocks of every sequence and head; pairs of them, where the kernel computes pairs
  core::DenseSchedule dense_schedule;
  core::Divisor group_divisor, m_blocks_divisor;
  core::UnitSchedule units;  // of the kernel for few keys; here, as each line of these constants takes time to come
  int64_t l2_budget;         // for packed q, whose sections depend on the sequence
  int64_t kv_bytes_per_key;  // of K and V of one KV head, for the tile order

  float scale;       // softmax_scale
  float scale_log2;  // softmax_scale * log2(e)
  float softcap;     // 0: off
  core::SoftcapPolynomial softcap_polynomial;
  uint32_t zero;              // 0, but the compiler does not know that: see ptx::after()
  const float *alibi_slopes;  // may be NULL
  int64_t alibi_batch_stride;
  const float *sinks;  // may be NULL

  int32_t *tile_counter;  // zero at launch; NULL: no stream has more than one tile, or all are shared out beforehand
  const int32_t *first_m_block;  // packed q: (batch + 1); NULL: thread blocks add the lengths up themselves
  int32_t most_m_blocks;         // bound for what first_m_block holds, so that tile numbers stay in 32 bits

  // Of calls with a cache. Batch entries of k and v are then those of the cache, or pages; k_side: of cache.filled.
  core::KvCache cache;
  CacheLoads cache_loads;
  int32_t box_rows, boxes_of_block;
  int32_t loading_warps;  // that share a block of K, and one of V: 1 or 2
  core::PageStep page_step;

  // Of the kernels that compute tiles in pieces of their keys, by another thread block each: how many at most.
  core::Divisor pieces;
  core::Divisor pack;  // see TileRows; nheads and group count so many query heads as one then
  Partials partials;

  core::PackedUnits packed_units;  // of the kernel for few keys, where lengths come from device memory

  core::MonicSoftcap monic_softcap;  // of the kernels for nothing but a softcap
};

}  // namespace flash3::device
