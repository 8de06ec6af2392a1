// The keys of a tile, dense or in pages, as a warp of CacheProducer finds them and sets the copy engine to them
// (BoxLoads); row_copies.cuh copies them row by row. A producer's warps share their multiprocessor with the consumers,
// whose instructions they wait for: what a block takes is counted in instructions, and nothing is found out twice
// (docs/performance.md, "What a producer's warps have time for").
#pragma once

#include <cstdint>

#include "core/page_walk.h"
#include "device/barriers.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// The keys of a tile: `count` from row `first_row` of the sequence on.
struct TileKeys {
  int32_t first_row, count, kv_head, entry;
};

// What the two ways to load have in common. Of the four warps two load K and two V, each half of a block.
template <class Traits>
struct CacheWarp {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Ring = RingState<Traits::kStages>;
  static constexpr int kBlockN = Traits::kBlockN;

  const FwdArgs &args;
  SharedStorage &smem;
  const int warp;
  const int lane = threadIdx.x % 32;

  __device__ __forceinline__ CacheWarp(const FwdArgs &a, SharedStorage &s, int of) : args(a), smem(s), warp(of) {}

  __device__ __forceinline__ bool of_v() const { return warp % 2 != 0; }
  __device__ __forceinline__ int half() const { return warp / 2; }
  __device__ __forceinline__ const TensorRows &tensor() const { return of_v() ? args.v : args.k; }
  __device__ __forceinline__ int32_t head_dim() const { return of_v() ? args.head_dim_v : args.head_dim; }
  __device__ __forceinline__ Element *buffer(const Ring &place) const {
    return of_v() ? smem.v[place.index()] : smem.k[place.index()];
  }
  __device__ __forceinline__ uint64_t *full(const Ring &place) const {
    return of_v() ? &smem.barriers.v_full[place.index()] : &smem.barriers.k_full[place.index()];
  }
  __device__ __forceinline__ void wait_empty(const Ring &place) const {
    const uint32_t i = place.index();
    ptx::mbarrier_wait(of_v() ? &smem.barriers.v_empty[i] : &smem.barriers.k_empty[i], place.parity());
  }
};

// The page of a key as the table has it, also out of range; any where there is no such key. Nothing waits for the
// answer here; to wait for the one before would be to wait for both, if this question were asked first: `zero` is 0 and
// depends on that answer.
template <int kBlockN>
__device__ __forceinline__ int32_t page_of(const core::PageWalk<kBlockN> &walk, const TileKeys &keys,
                                           const int32_t *table, int32_t zero) {
  return __ldg(table + ((walk.is_among(keys.count) ? walk.number : 0) + zero));
}

// Of the sequence. Told that all lanes have the same, the compiler does not compute it again for each block.
template <class Traits>
__device__ __forceinline__ const int32_t *page_table_of(const FwdArgs &args, const TileKeys &keys) {
  return ptx::uniform(args.cache.page_table + keys.entry * args.cache.page_table_batch_stride);
}

// By boxes: one that holds a whole block of a dense cache, or several that lie in pages, every second one for either
// warp.
template <class Traits>
struct BoxLoads : CacheWarp<Traits> {
  using Base = CacheWarp<Traits>;
  using Base::args;
  using Base::half;
  using Base::kBlockN;
  using Base::lane;
  using typename Base::Ring;

  const TileKeys keys;
  const int32_t *const table;
  core::PageWalk<kBlockN> walk;  // of the lane's box
  int32_t page;                  // as read

  __device__ __forceinline__ BoxLoads(const Base &base, const TileKeys &k, int32_t n)
      : Base(base),
        keys(k),
        table(page_table_of<Traits>(args, k)),
        walk(args.cache, args.page_step, k.first_row,
             static_cast<uint32_t>(n) * kBlockN + (half() + lane * args.loading_warps) * args.box_rows),
        page(look(0)) {}

  __device__ __forceinline__ void load(int32_t n, const Ring &place) {
    const int32_t rows_before = static_cast<int32_t>(args.k_side.rows) - keys.count;
    ptx::TmaCoord own = {0, rows_before + n * kBlockN, keys.first_row + keys.count, keys.kv_head, keys.entry};
    if (args.cache_loads == CacheLoads::kPages) {
      // What is behind the last key in its page reads as zero: the page ends there.
      const int32_t page_size = args.cache.page_size;
      own.end = min(page_size, keys.count - walk.key + walk.row);
      own.batch = min(page, args.cache.num_pages - 1);
      own.row = !walk.is_among(keys.count) || page < 0 ? -1 : page_size - own.end + walk.row;
      walk.back(args.cache, args.page_step);
      page = look(page & static_cast<int32_t>(args.zero));
    }
    const CUtensorMap *const map = this->of_v() ? &args.v_map : &args.k_map;
    auto *const to = this->buffer(place);
    uint64_t *const full = this->full(place);
    // All lanes wait: if one waited for all, the shuffles would have to bring the warp together first.
    this->wait_empty(place);
    const bool leader = ptx::elect_one();
    if (leader) {
      const int32_t boxes = (args.boxes_of_block - half() + args.loading_warps - 1) >> (args.loading_warps - 1);
      ptx::mbarrier_arrive_expect_tx(full, boxes * args.box_rows * (Traits::kHeadDim * 2));
    }
#pragma unroll 1
    for (int lane_of = 0, box = half(); box < args.boxes_of_block; ++lane_of, box += args.loading_warps) {
      const ptx::TmaCoord at = {0, __shfl_sync(0xffffffffu, own.row, lane_of),
                                __shfl_sync(0xffffffffu, own.end, lane_of), own.head,
                                __shfl_sync(0xffffffffu, own.batch, lane_of)};
      if (!leader) continue;
#pragma unroll
      for (int c = 0; c < Traits::kColBlocks; ++c) {
        const int32_t col = c * Traits::kBoxCols;
        const bool inside = col < this->head_dim() && at.row >= 0;
        // Zeros begin behind the first columns of their map.
        const ptx::TmaCoord from = {inside ? col : Traits::kBoxCols, inside ? at.row : 0, inside ? at.end : 0,
                                    inside ? at.head : 0, inside ? at.batch : 0};
        ptx::tma_load(to + (c * kBlockN + box * args.box_rows) * Traits::kBoxCols, inside ? map : &args.kv_zero_map,
                      full, ptx::L2Hint::kEvictLast, from);
      }
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ int32_t look(int32_t zero) const {
    return args.cache_loads == CacheLoads::kPages ? page_of(walk, keys, table, zero) : 0;
  }
};

}  // namespace flash3::device
