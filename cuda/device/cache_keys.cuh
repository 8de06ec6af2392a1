// The keys of a tile, dense or in pages, as a warp of CacheProducer brings them into shared memory: as boxes of the
// copy engine, or row by row. A producer's warps share their multiprocessor with the consumers, whose instructions they
// wait for; what a block takes is therefore counted in instructions, and nothing is found out twice
// (docs/performance.md, "Many queries on a cache").
#pragma once

#include <cstdint>

#include "device/barriers.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/swizzle.cuh"
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

// A key of one block after the other, from the last one to the first, and its place in the pages. Nothing is divided on
// the way.
template <class Traits>
struct PageWalk {
  int32_t key, number, row;  // number: of the page in the sequence; row: in the page

  __device__ __forceinline__ PageWalk(const FwdArgs &args, const TileKeys &keys, int32_t first_key) : key(first_key) {
    const auto at = static_cast<uint32_t>(keys.first_row + key);
    number = static_cast<int32_t>(args.cache.page_divisor.quotient(at));
    row = static_cast<int32_t>(at) - number * args.cache.page_size;
  }

  __device__ __forceinline__ void step(const FwdArgs &args) {
    key -= Traits::kBlockN;
    number -= args.pages_of_block;
    row -= args.rows_beyond_pages;
    if (row < 0) {
      row += args.cache.page_size;
      --number;
    }
  }

  __device__ __forceinline__ bool is_there(const TileKeys &keys) const {
    return static_cast<uint32_t>(key) < static_cast<uint32_t>(keys.count);
  }

  // The page as the table has it, also out of range; any where there is no such key. Nothing waits for the answer here;
  // to wait for the one before would be to wait for both, if this question were asked first: `zero` is 0 and depends on
  // that answer.
  __device__ __forceinline__ int32_t page(const TileKeys &keys, const int32_t *table, int32_t zero) const {
    return __ldg(table + ((is_there(keys) ? number : 0) + zero));
  }
};

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
  PageWalk<Traits> walk;  // of the lane's box
  int32_t page;           // as read

  __device__ __forceinline__ BoxLoads(const Base &base, const TileKeys &k, int32_t n)
      : Base(base),
        keys(k),
        table(page_table_of<Traits>(args, k)),
        walk(args, k, n * kBlockN + (half() + lane * args.loading_warps) * args.box_rows),
        page(look(0)) {}

  __device__ __forceinline__ void load(int32_t n, const Ring &place) {
    const int32_t rows_before = static_cast<int32_t>(args.k_side.rows) - keys.count;
    ptx::TmaCoord own = {0, rows_before + n * kBlockN, keys.first_row + keys.count, keys.kv_head, keys.entry};
    if (args.cache_loads == CacheLoads::kPages) {
      // What is behind the last key in its page reads as zero: the page ends there.
      const int32_t page_size = args.cache.page_size;
      own.end = min(page_size, keys.count - walk.key + walk.row);
      own.batch = min(page, args.cache.num_pages - 1);
      own.row = !walk.is_there(keys) || page < 0 ? -1 : page_size - own.end + walk.row;
      walk.step(args);
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
    return args.cache_loads == CacheLoads::kPages ? walk.page(keys, table, zero) : 0;
  }
};

// Row by row, by asynchronous copies of 16 bytes, each warp half of the rows of a block. A lane finds the addresses of
// one or two of them for all lanes.
template <class Traits>
struct RowCopies : CacheWarp<Traits> {
  using Base = CacheWarp<Traits>;
  using Base::args;
  using Base::half;
  using Base::kBlockN;
  using Base::lane;
  using Base::smem;
  using typename Base::Element;
  using typename Base::Ring;
  static constexpr int kRows = Traits::kCopiedRows;
  static constexpr int kFound = (kRows + 31) / 32;  // rows that a lane finds
  static constexpr int kGroups = kRows / 4;         // eight lanes copy 128 bytes of a row, so that a warp has four rows
  static_assert(kRows % 8 == 0 && kFound <= 2, "halves of a block");

  const TileKeys keys;
  const int32_t *const table;
  const Element *const first;  // row 0 of page 0
  PageWalk<Traits> walk[kFound];
  int32_t page[kFound];  // as read

  __device__ __forceinline__ RowCopies(const Base &base, const TileKeys &k, int32_t n)
      : Base(base),
        keys(k),
        table(page_table_of<Traits>(args, k)),
        first(row_of<Element>(this->tensor(), 0, 0, k.kv_head)),
        walk{{args, k, own_key(n, 0)}, {args, k, own_key(n, kFound - 1)}} {
#pragma unroll
    for (int i = 0; i < kFound; ++i) page[i] = walk[i].page(keys, table, 0);
    find();
  }

  __device__ __forceinline__ void load(int32_t n, const Ring &place) {
    const int32_t rows = keys.count - n * kBlockN - half() * kRows;  // of the warp's, up to the last key
    this->wait_empty(place);
    if (ptx::uniform(rows >= kRows && this->head_dim() == Traits::kHeadDim)) {
      copy_whole_rows(this->buffer(place));
    } else {
      copy_some_rows(this->buffer(place), rows);
    }
    find();  // while the copies are on their way
    ptx::cp_async_wait_all();
    ptx::fence_proxy_async_shared();
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(this->full(place));
  }

 private:
  // The addresses of the rows of the next block, whose pages have been asked for; and asks for those of the one in
  // front of it.
  __device__ __forceinline__ void find() {
    __syncwarp();  // everyone has read the addresses of the block before
    int32_t zero = 0;
#pragma unroll
    for (int i = 0; i < kFound; ++i) {
      // Numbers of 32 bits without a sign: two instructions for a product of 64.
      const auto id = static_cast<uint32_t>(max(0, min(page[i], args.cache.num_pages - 1)));
      const Element *const row = first + id * static_cast<uint64_t>(this->tensor().batch_stride) +
                                 static_cast<uint32_t>(walk[i].row) * static_cast<uint64_t>(this->tensor().row_stride);
      if (32 * i + lane < kRows) places()[slot(32 * i + lane)] = reinterpret_cast<uint64_t>(row);
      zero |= page[i];
    }
    zero &= static_cast<int32_t>(args.zero);
#pragma unroll
    for (int i = 0; i < kFound; ++i) {
      walk[i].step(args);
      page[i] = walk[i].page(keys, table, zero);
    }
    __syncwarp();
  }

  __device__ __forceinline__ uint64_t *places() const { return smem.copied.of_warp[this->warp]; }

  __device__ __forceinline__ int32_t own_key(int32_t n, int i) const {
    return n * kBlockN + half() * kRows + 32 * i + lane;
  }

  // Where the address of a row lies among those of the warp. The rows that a lane copies follow each other.
  static __device__ __forceinline__ int slot(int row) { return row % 4 * Traits::kRowPlaces + row / 4; }

  __device__ __forceinline__ void copy_whole_rows(Element *to) const {
    const int col = lane % 8 * 8;
    // The layout of a block repeats itself every 8 rows.
    const uint32_t base = ptx::shared_address(to);
    const uint32_t to_of[2] = {base + in_block(half() * kRows + lane / 8, col),
                               base + in_block(half() * kRows + lane / 8 + 4, col)};
    // Several rows at a time, in registers of their own: a copy reads its address late, and until then nothing can be
    // written there.
    constexpr int kAtOnce = 4;
#pragma unroll
    for (int begin = 0; begin < kGroups; begin += kAtOnce) {
      const Element *rows[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce && begin + i < kGroups; i += 2) {
        const auto two = *reinterpret_cast<const ulonglong2 *>(&places()[slot(lane / 8) + begin + i]);
        rows[i] = reinterpret_cast<const Element *>(two.x) + col;
        rows[i + 1] = reinterpret_cast<const Element *>(two.y) + col;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce && begin + i < kGroups; ++i) {
        const int group = begin + i;
        const uint32_t row_to = to_of[group % 2] + group / 2 * 8 * Traits::kSwizzleBytes;
#pragma unroll
        for (int from = 0; from < Traits::kHeadDim; from += 64) {
          if (from + 64 > Traits::kHeadDim && from + col >= Traits::kHeadDim) continue;
          ptx::cp_async_16(row_to + from / Traits::kBoxCols * (kBlockN * Traits::kSwizzleBytes), rows[i] + from, 16);
        }
      }
    }
  }

  // The same where there are zeros behind the last of so many rows, or behind the head dim.
  __device__ __forceinline__ void copy_some_rows(Element *to, int32_t rows) const {
#pragma unroll 1
    for (int row = lane / 8; row < kRows; row += 4) {
      const auto *const from = reinterpret_cast<const Element *>(places()[slot(row)]);
#pragma unroll 1
      for (int col = lane % 8 * 8; col < Traits::kHeadDim; col += 64) {
        const bool inside = row < rows && col < this->head_dim();
        ptx::cp_async_16(ptx::shared_address(to) + in_block(half() * kRows + row, col), inside ? from + col : first,
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
