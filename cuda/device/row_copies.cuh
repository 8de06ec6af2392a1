// The keys of a tile in pages that are too small for the copy engine: row by row.
#pragma once

#include <cstdint>

#include "device/cache_keys.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/swizzle.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

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
  core::PageWalk<kBlockN> walk[kFound];
  int32_t page[kFound];  // as read

  __device__ __forceinline__ RowCopies(const Base &base, const TileKeys &k, int32_t n)
      : Base(base),
        keys(k),
        table(page_table_of<Traits>(args, k)),
        first(row_of<Element>(this->tensor(), 0, 0, k.kv_head)),
        walk{{args.cache, args.page_step, k.first_row, own_key(n, 0)},
             {args.cache, args.page_step, k.first_row, own_key(n, kFound - 1)}} {
#pragma unroll
    for (int i = 0; i < kFound; ++i) page[i] = page_of(walk[i], keys, table, 0);
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
      walk[i].back(args.cache, args.page_step);
      page[i] = page_of(walk[i], keys, table, zero);
    }
    __syncwarp();
  }

  __device__ __forceinline__ uint64_t *places() const { return smem.copied.of_warp[this->warp]; }

  __device__ __forceinline__ uint32_t own_key(int32_t n, int i) const {
    return static_cast<uint32_t>(n) * kBlockN + half() * kRows + 32 * i + lane;
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
