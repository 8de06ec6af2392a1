// The producer warp of the kernel of latent attention.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "core/split_cursor.h"
#include "core/split_schedule.h"
#include "device/mla_traits.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"

namespace flash3::device {

template <class Traits>
struct MlaProducer {
  using SharedStorage = typename Traits::SharedStorage;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kAhead = 2;

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  SharedStorage &smem;
  const int rank;                             // of the thread block, among those of a tile
  const bool fetches;                         // whether there are several
  uint32_t parity[Traits::kGroups] = {1, 1};  // of what is waited for, the phase before the first one to begin with

  __device__ __forceinline__ MlaProducer(const SplitArgs &a, const core::SplitSchedule &s, SharedStorage &storage,
                                         int which)
      : args(a), schedule(s), smem(storage), rank(which), fetches(s.block_m > Traits::kBlockM) {}

  // By one whole warp.
  __device__ __forceinline__ void run(core::SplitCursor cursor) {
#pragma unroll 1
    for (; !cursor.done(); cursor.advance()) {
      const core::SplitPiece piece = cursor.piece();
      const core::KeySpan span = schedule.k.span(piece.batch);
      // Page ids are read some blocks ahead.
      int32_t pages[kAhead + 1];
#pragma unroll
      for (int i = 0; i <= kAhead; ++i) pages[i] = page_id(span, piece.n_begin, piece.n_end - 1 - i);
#pragma unroll 1
      for (int32_t n = piece.n_end - 1; n >= piece.n_begin; n -= 2) {
        load_block<0>(piece, span, n, pages);
        if (n - 1 >= piece.n_begin) load_block<1>(piece, span, n - 1, pages);
      }
    }
  }

 private:
  // A key block is some boxes of rows, each of which lies in one page; a lane knows the place of one.
  const int boxes = ptx::uniform(kBlockN / args.box_rows);
  const int32_t first_row = threadIdx.x % 32 * args.box_rows;

  __device__ __forceinline__ int32_t page_id(const core::KeySpan &span, int32_t n_begin, int32_t n) const {
    const int32_t key = n * kBlockN + first_row;
    const bool needed = schedule.k.page_table != nullptr && first_row < kBlockN && n >= n_begin && key < span.len;
    return needed ? schedule.k.page_id(span, key) : 0;
  }

  // Rows as in TileLoads: what lies behind the last key reads as zero. end < 0: there is no key.
  __device__ __forceinline__ ptx::TmaCoord box(const core::KeySpan &span, int32_t kv_head, int32_t n,
                                               int32_t page) const {
    const int32_t key = n * kBlockN + first_row;
    if (first_row >= kBlockN || key >= span.len) return {kZeroCol, 0, kNoKey, 0, 0};
    const core::KvCache &cache = schedule.k;
    if (cache.page_table == nullptr) {
      return {0, static_cast<int32_t>(cache.filled.rows - span.len) + key,
              static_cast<int32_t>(span.first_row + span.len), kv_head, static_cast<int32_t>(span.entry)};
    }
    // Pages hold whole boxes, and the first key is the first row of the first page.
    const core::RowPlace at = cache.place(span, key, page);
    const auto in_page = static_cast<int32_t>(at.row);
    const int32_t filled = min(span.len - key + in_page, cache.page_size);
    return {0, cache.page_size - filled + in_page, filled, kv_head, static_cast<int32_t>(at.entry)};
  }

  // Into shared memory, and the one that comes kAhead blocks later into L2.
  template <int kBuffer>
  __device__ __forceinline__ void load_block(const core::SplitPiece &piece, const core::KeySpan &span, int32_t n,
                                             int32_t (&pages)[kAhead + 1]) {
    constexpr int kOwnChunk = kBuffer * Traits::kHalfChunks;
    const ptx::TmaCoord at = box(span, piece.kv_head, n, pages[0]);
    const ptx::TmaCoord first = of_lane(at, 0);
    ptx::mbarrier_wait(&smem.barriers.empty[kBuffer][Traits::kOwn], parity[kBuffer]);
    load_half<kBuffer, kOwnChunk, false>(at, first);
    ptx::mbarrier_wait(&smem.barriers.empty[kBuffer][Traits::kOther], parity[kBuffer]);
    load_half<kBuffer, Traits::kHalfChunks - kOwnChunk, true>(at, first);
    parity[kBuffer] ^= 1;
    if (fetches && n - kAhead >= piece.n_begin) fetch(box(span, piece.kv_head, n - kAhead, pages[kAhead]));
#pragma unroll
    for (int i = 0; i < kAhead; ++i) pages[i] = pages[i + 1];
    pages[kAhead] = page_id(span, piece.n_begin, n - 1 - kAhead);
  }

  // Half of the chunks from kFirst on, and the one that is in no half. By one lane, and from places that are known to
  // be the same in all: the copy engine is slow to be set to values that may differ.
  template <int kBuffer, int kFirst, bool kAndLast>
  __device__ __forceinline__ void load_half(const ptx::TmaCoord &at, const ptx::TmaCoord &first) const {
    if (ptx::elect_one()) {
#pragma unroll
      for (int i = 0; i < Traits::kHalfChunks + kAndLast; ++i) {
        const int chunk = i < Traits::kHalfChunks ? kFirst + i : Traits::kLastChunk;
        ptx::mbarrier_arrive_expect_tx(&smem.barriers.full[kBuffer][chunk], Traits::kChunkBytes);
        load_chunk(first, 0, kBuffer, chunk);
      }
    }
    __syncwarp();
#pragma unroll 1
    for (int b = 1; b < boxes; ++b) {
      const ptx::TmaCoord next = of_lane(at, b);
      if (ptx::elect_one()) {
#pragma unroll
        for (int i = 0; i < Traits::kHalfChunks + kAndLast; ++i) {
          load_chunk(next, b, kBuffer, i < Traits::kHalfChunks ? kFirst + i : Traits::kLastChunk);
        }
      }
      __syncwarp();
    }
  }

  __device__ __forceinline__ void load_chunk(const ptx::TmaCoord &at, int box, int buffer, int chunk) const {
    const bool inside = at.end != kNoKey;
    const CUtensorMap *const map = inside ? &args.k_map : &args.kv_zero_map;
    const ptx::TmaCoord from = {inside ? chunk * Traits::kChunkCols : kZeroCol, at.row, inside ? at.end : 0, at.head,
                                at.batch};
    auto *const to = smem.k[buffer][chunk] + box * args.box_rows * Traits::kChunkCols;
    ptx::tma_load(to, map, &smem.barriers.full[buffer][chunk], ptx::L2Hint::kNormal, from);
  }

  // Half of the chunks, where another thread block does the rest.
  __device__ __forceinline__ void fetch(const ptx::TmaCoord &at) const {
#pragma unroll 1
    for (int b = 0; b < boxes; ++b) {
      ptx::TmaCoord from = of_lane(at, b);
      if (ptx::elect_one() && from.end != kNoKey) {
        from.col = rank * Traits::kHalfCols;
#pragma unroll
        for (int i = 0; i < Traits::kHalfChunks; ++i, from.col += Traits::kChunkCols) {
          ptx::tma_prefetch(&args.k_map, from);
        }
        from.col = Traits::kLastChunk * Traits::kChunkCols;
        if (rank == 0) ptx::tma_prefetch(&args.k_map, from);
      }
      __syncwarp();
    }
  }

  static __device__ __forceinline__ ptx::TmaCoord of_lane(const ptx::TmaCoord &at, int lane) {
    return {at.col, shuffle(at.row, lane), shuffle(at.end, lane), shuffle(at.head, lane), shuffle(at.batch, lane)};
  }
  static __device__ __forceinline__ int32_t shuffle(int32_t x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

  static constexpr int32_t kNoKey = -1;
  static constexpr int32_t kZeroCol = 64;  // of a map of zeros, where it has none of its own
};

}  // namespace flash3::device
