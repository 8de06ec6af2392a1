// The producers of a cache, dense or in pages: of the four warps of a warpgroup two load K and two V, so that neither
// waits for a buffer of the other. They set the copy engine to a key block, or to boxes of it that lie in pages; where
// pages are too small for that, they copy rows.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/producer_sm90.cuh"
#include "device/ptx.cuh"
#include "device/swizzle.cuh"
#include "device/tile_loads.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct CacheProducer : Producer<Traits> {
  using Base = Producer<Traits>;
  using Base::args;
  using Base::smem;
  using Element = typename Traits::Element;
  using Job = typename Traits::Job;
  using SharedStorage = typename Traits::SharedStorage;
  using Ring = RingState<Traits::kStages>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kCopyRows = kBlockN / 2;          // of a block, that a warp copies
  static constexpr int kPlaces = (kCopyRows + 31) / 32;  // rows whose pages a lane finds
  static_assert(kCopyRows % 8 == 0 && kPlaces <= 2, "eight lanes copy a row");

  const bool leads;  // the first warp, which finds the tiles and loads Q
  const bool of_v;
  const int half;  // of the rows of a block, or of its boxes: every second one
  const int lane = threadIdx.x % 32;

  __device__ __forceinline__ CacheProducer(const FwdArgs &a, SharedStorage &s, int warp)
      : Base(a, s, 0), leads(warp == 0), of_v(warp % 2 != 0), half(warp / 2) {
    if (!leads) this->tile_state = RingState<Traits::kTileSlots>::consumer();
  }

  // The keys of a tile: `num_keys` from row `first_row` of the sequence on.
  struct Source {
    int32_t first_row, num_keys, kv_head, entry;
  };

  // -1 where there is no key. Of a dense cache, the entry.
  struct Pages {
    int32_t of[kPlaces];
  };

  __device__ __forceinline__ void run() {
    if (half >= args.loading_warps) return;
    if (leads && this->packed_q()) ptx::wait_for_previous_kernel();  // first_m_block is its work
    Ring place = Ring::producer();
    int64_t t = blockIdx.x;
    bool more;
#pragma unroll 1
    do {
      const Job job = next_job(t);
      const auto num_keys = static_cast<int32_t>(args.k_side.rows) - job.k_row;
      const Source source = {job.k_end - num_keys, num_keys, job.kv_head, job.batch_k};
      more = ptx::uniform(job.valid);
      int32_t ticket = 0;
      if (leads && more && job.range.count() == 0) ticket = this->claim();
      Pages next = pages_of(source, job.range.end - 1, {});
#pragma unroll 1
      for (int32_t n = job.range.end - 1; n >= job.range.begin; --n) {
        const bool first = n == job.range.end - 1;
        if (Traits::kQStages == 2 && leads && first) Base::load(this->next_q(job));
        if (leads && n == job.range.begin) ticket = this->claim();
        const Pages pages = inside(next);
        next = pages_of(source, n - 1, pages);  // on its way while the buffer is waited for, and the block copied
        if (!Traits::kOverlapsTiles && of_v && first) {
          // Where the output of the tile before has been staged.
          ptx::mbarrier_wait(&smem.barriers.out_empty, this->out_state.parity());
          this->out_state.advance();
        }
        if (args.cache_loads == CacheLoads::kRows) {
          copy_rows(source, n, pages, place);
        } else {
          load_boxes(source, n, pages.of[0], place);
        }
        if (Traits::kQStages == 1 && leads && first) Base::load(this->next_q(job));
        place.advance();
      }
      if (leads) t = this->successor(ticket);
    } while (more);
  }

 private:
  // The next tile, in the first warp the first one from number t on that has rows; not valid where there is none. Read
  // from where the first warp announces it: to keep it in registers meanwhile would take too many.
  __device__ __forceinline__ Job next_job(int64_t t) {
    const uint32_t i = ptx::uniform(this->tile_state.index());
    if (leads) {
      announce(t);
    } else {
      ptx::mbarrier_wait(&smem.barriers.tile_full[i], this->tile_state.parity());
    }
    const WorkTile &tile = smem.tile[i];
    Job job = {};
    job.valid = tile.valid != 0;
    job.range = tile.range;
    if (job.valid) {
      this->set_queries({tile.q_start, tile.seqlen_q}, {tile.m_block, tile.head, tile.batch}, &job);
      this->set_keys(this->keys(tile.batch), tile.head, &job);
    }
    if (!leads) {
      ptx::mbarrier_arrive(&smem.barriers.tile_empty[i]);
      this->tile_state.advance();
    }
    return job;
  }

  __device__ __forceinline__ void announce(int64_t t) {
    WorkTile tile = {};  // valid = 0: no more
    Job unused;
    this->look(t, &tile, &unused);
    if (this->is_leader()) this->publish(tile);
    __syncwarp();
  }

  __device__ __forceinline__ const TensorRows &tensor() const { return of_v ? args.v : args.k; }
  __device__ __forceinline__ int32_t head_dim() const { return of_v ? args.head_dim_v : args.head_dim; }
  __device__ __forceinline__ Element *buffer(uint32_t i) const { return of_v ? smem.v[i] : smem.k[i]; }
  __device__ __forceinline__ uint64_t *full(uint32_t i) const {
    return of_v ? &smem.barriers.v_full[i] : &smem.barriers.k_full[i];
  }
  __device__ __forceinline__ void wait_empty(const Ring &place) const {
    const uint32_t i = place.index();
    ptx::mbarrier_wait(of_v ? &smem.barriers.v_empty[i] : &smem.barriers.k_empty[i], place.parity());
  }

  // The key of a block that a lane looks the page up of, for all lanes: of its box, or of its p-th row.
  __device__ __forceinline__ int32_t own_key(int p) const {
    return args.cache_loads == CacheLoads::kRows ? half * kCopyRows + 32 * p + lane
                                                 : (half + lane * args.loading_warps) * args.box_rows;
  }

  // As the table has them, also out of range. Nothing waits for the answer here; and to wait for the one before would
  // be to wait for both, if this question were asked first.
  __device__ __forceinline__ Pages pages_of(const Source &source, int32_t n, const Pages &before) const {
    Pages pages;
    int32_t zero = 0;
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) zero |= before.of[p];
    zero &= static_cast<int32_t>(args.zero);
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) {
      pages.of[p] = source.entry;
      if (args.cache_loads == CacheLoads::kBlocks) continue;
      const uint32_t key = static_cast<uint32_t>(n) * kBlockN + own_key(p);  // in front of block 0 it is large
      pages.of[p] = -1;
      if (own_key(p) >= kBlockN || key >= static_cast<uint32_t>(source.num_keys)) continue;
      const uint32_t number = args.cache.page_divisor.quotient(source.first_row + key) + zero;
      pages.of[p] = args.cache.page_table[source.entry * args.cache.page_table_batch_stride + number];
    }
    return pages;
  }

  // Pages that the cache has; negative ones stay so.
  __device__ __forceinline__ Pages inside(const Pages &read) const {
    Pages pages = read;
    if (args.cache_loads == CacheLoads::kBlocks) return pages;
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) pages.of[p] = min(read.of[p], args.cache.num_pages - 1);
    return pages;
  }

  __device__ __forceinline__ void load_boxes(const Source &source, int32_t n, int32_t page, const Ring &place) const {
    ptx::TmaCoord own = {0, static_cast<int32_t>(args.k_side.rows) - source.num_keys + n * kBlockN,
                         source.first_row + source.num_keys, source.kv_head, page};
    if (args.cache_loads == CacheLoads::kPages) {
      // What is behind the last key in its page reads as zero: the page ends there.
      const int32_t page_size = args.cache.page_size;
      const int32_t key = n * kBlockN + own_key(0);
      const auto number = static_cast<int32_t>(args.cache.page_divisor.quotient(static_cast<uint32_t>(key)));
      own.end = min(page_size, source.num_keys - number * page_size);
      own.row = page < 0 ? -1 : page_size - own.end + key - number * page_size;
      own.batch = page;
    }
    const CUtensorMap *const map = of_v ? &args.v_map : &args.k_map;
    const uint32_t i = place.index();
    const bool leader = ptx::elect_one();
    if (leader) {
      const int32_t boxes = (args.boxes_of_block - half + args.loading_warps - 1) >> (args.loading_warps - 1);
      wait_empty(place);
      ptx::mbarrier_arrive_expect_tx(full(i), boxes * args.box_rows * (Traits::kHeadDim * 2));
    }
#pragma unroll 1
    for (int lane_of = 0, box = half; box < args.boxes_of_block; ++lane_of, box += args.loading_warps) {
      const ptx::TmaCoord at = {0, __shfl_sync(0xffffffffu, own.row, lane_of),
                                __shfl_sync(0xffffffffu, own.end, lane_of), own.head,
                                __shfl_sync(0xffffffffu, own.batch, lane_of)};
      if (!leader) continue;
#pragma unroll
      for (int c = 0; c < Traits::kColBlocks; ++c) {
        const int32_t col = c * Traits::kBoxCols;
        const bool inside = col < head_dim() && at.row >= 0;
        // Zeros begin behind the first columns of their map.
        const ptx::TmaCoord from = {inside ? col : Traits::kBoxCols, inside ? at.row : 0, inside ? at.end : 0,
                                    inside ? at.head : 0, inside ? at.batch : 0};
        ptx::tma_load(buffer(i) + (c * kBlockN + box * args.box_rows) * Traits::kBoxCols,
                      inside ? map : &args.kv_zero_map, full(i), ptx::L2Hint::kEvictLast, from);
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void copy_rows(const Source &source, int32_t n, const Pages &pages,
                                            const Ring &place) const {
    uint64_t from[kPlaces];  // addresses of the lane's rows
#pragma unroll
    for (int p = 0; p < kPlaces; ++p) {
      const auto row = static_cast<uint32_t>(source.first_row + n * kBlockN + own_key(p));
      const int64_t in_page = row - args.cache.page_divisor.quotient(row) * args.cache.page_size;
      const int32_t page = max(0, pages.of[p]);
      from[p] = reinterpret_cast<uint64_t>(row_of<Element>(tensor(), page, in_page, source.kv_head));
    }
    const int32_t rows = source.num_keys - n * kBlockN - half * kCopyRows;  // of the warp's, up to the last key
    wait_empty(place);
    if (ptx::uniform(rows >= kCopyRows && head_dim() == Traits::kHeadDim)) {
      copy_whole_rows(from, buffer(place.index()));
    } else {
      copy_some_rows(from, buffer(place.index()), rows);
    }
    ptx::cp_async_mbarrier_arrive(full(place.index()));
  }

  // Eight lanes to a row, which copy 128 bytes of it, four rows at a time.
  __device__ __forceinline__ void copy_whole_rows(const uint64_t (&from)[kPlaces], Element *to) const {
    const int col = lane % 8 * 8;
    // The layout of a block repeats itself every 8 rows.
    const uint32_t base = ptx::shared_address(to);
    const uint32_t to_of[2] = {base + in_block(half * kCopyRows + lane / 8, col),
                               base + in_block(half * kCopyRows + lane / 8 + 4, col)};
    // Several rows at a time, in registers of their own: a copy reads its address late, and until then nothing can be
    // written there.
    constexpr int kGroups = kCopyRows / 4;
    constexpr int kAtOnce = 4;
#pragma unroll
    for (int begin = 0; begin < kGroups; begin += kAtOnce) {
      const Element *rows[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce && begin + i < kGroups; ++i) {
        const int group = begin + i;
        const uint64_t row = __shfl_sync(0xffffffffu, from[group / 8], (4 * group + lane / 8) % 32);
        rows[i] = reinterpret_cast<const Element *>(row) + col;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce && begin + i < kGroups; ++i) {
        const int group = begin + i;
        const uint32_t row_to = to_of[group % 2] + group / 2 * 8 * Traits::kSwizzleBytes;
#pragma unroll
        for (int first = 0; first < Traits::kHeadDim; first += 64) {
          if (first + 64 > Traits::kHeadDim && first + col >= Traits::kHeadDim) continue;
          ptx::cp_async_16(row_to + first / Traits::kBoxCols * (kBlockN * Traits::kSwizzleBytes), rows[i] + first, 16);
        }
      }
    }
  }

  // The same where there are zeros behind the last of so many rows, or behind the head dim.
  __device__ __forceinline__ void copy_some_rows(const uint64_t (&from)[kPlaces], Element *to, int32_t rows) const {
#pragma unroll 1
    for (int group = 0; group < kCopyRows / 4; ++group) {
      const int row = 4 * group + lane / 8;
      uint64_t row_from = from[0];
      if (kPlaces > 1 && group >= 8) row_from = from[kPlaces - 1];
      row_from = __shfl_sync(0xffffffffu, row_from, row % 32);
#pragma unroll 1
      for (int col = lane % 8 * 8; col < Traits::kHeadDim; col += 64) {
        const bool inside = row < rows && col < head_dim();
        const Element *const at = reinterpret_cast<const Element *>(inside ? row_from : from[0]);
        ptx::cp_async_16(ptx::shared_address(to) + in_block(half * kCopyRows + row, col), at + (inside ? col : 0),
                         inside ? 16 : 0);
      }
    }
  }

  // Byte offset of 16 bytes in a key block, as the tensor maps lay it out; col: a multiple of 8.
  static __device__ __forceinline__ uint32_t in_block(int row, int col) {
    return swizzled_offset<Traits::kSwizzleBytes, kBlockN>(row, col);
  }
};

}  // namespace flash3::device
