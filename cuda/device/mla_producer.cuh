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

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  SharedStorage &smem;
  uint32_t parities = 3;  // a bit a buffer: of the phase that is waited for, the one before the first to begin with

  __device__ __forceinline__ MlaProducer(const SplitArgs &a, const core::SplitSchedule &s, SharedStorage &storage)
      : args(a), schedule(s), smem(storage) {}

  // By one whole warp.
  __device__ __forceinline__ void run(core::SplitCursor cursor) {
#pragma unroll 1
    for (; !cursor.done(); cursor.advance()) {
      const core::SplitPiece piece = cursor.piece();
      const core::KeySpan span = schedule.k.span(piece.batch);
      int buffer = 0;
#pragma unroll 1
      for (int32_t n = piece.n_end - 1; n >= piece.n_begin; --n, buffer ^= 1) {
        load(box(span, piece.kv_head, n * kBlockN + first_row), buffer);
      }
    }
  }

 private:
  // A chunk is some boxes of rows, a box a lane.
  const bool has_box = static_cast<int32_t>(threadIdx.x % 32) * args.box_rows < kBlockN;
  const int32_t first_row = has_box ? threadIdx.x % 32 * args.box_rows : 0;

  // The place of the box whose first row is that key. Rows as in TileLoads: what lies behind the last key reads as
  // zero. end < 0: there is no key.
  __device__ __forceinline__ ptx::TmaCoord box(const core::KeySpan &span, int32_t kv_head, int32_t key) const {
    if (key >= span.len) return {kZeroCol, 0, kNoKey, 0, 0};
    const core::KvCache &cache = schedule.k;
    if (cache.page_table == nullptr) {
      return {0, static_cast<int32_t>(cache.filled.rows - span.len) + key,
              static_cast<int32_t>(span.first_row + span.len), kv_head, static_cast<int32_t>(span.entry)};
    }
    // Pages hold whole boxes, and the first key is the first row of the first page.
    const core::RowPlace at = cache.place(span, key);
    const auto in_page = static_cast<int32_t>(at.row);
    const int32_t filled = min(span.len - key + in_page, cache.page_size);
    return {0, cache.page_size - filled + in_page, filled, kv_head, static_cast<int32_t>(at.entry)};
  }

  __device__ __forceinline__ void load(const ptx::TmaCoord &at, int buffer) {
    const uint32_t parity = parities >> buffer & 1;
    parities ^= 1u << buffer;
    const int own = buffer * Traits::kHalfChunks;
    const int other = Traits::kHalfChunks - own;
    ptx::mbarrier_wait(&smem.barriers.empty[buffer][Traits::kOwn], parity);
    for (int i = 0; i < Traits::kHalfChunks; ++i) load_chunk(at, buffer, own + i);
    ptx::mbarrier_wait(&smem.barriers.empty[buffer][Traits::kOther], parity);
    for (int i = 0; i < Traits::kHalfChunks; ++i) load_chunk(at, buffer, other + i);
    load_chunk(at, buffer, Traits::kLastChunk);
  }

  __device__ __forceinline__ void load_chunk(const ptx::TmaCoord &at, int buffer, int chunk) const {
    uint64_t *const full = &smem.barriers.full[buffer][chunk];
    if (ptx::elect_one()) ptx::mbarrier_arrive_expect_tx(full, Traits::kChunkBytes);
    __syncwarp();
    if (!has_box) return;
    const bool inside = at.end != kNoKey;
    const CUtensorMap *const map = inside ? &args.k_map : &args.kv_zero_map;
    const ptx::TmaCoord from = {inside ? chunk * Traits::kChunkCols : kZeroCol, at.row, inside ? at.end : 0, at.head,
                                at.batch};
    auto *const to = smem.k[buffer][chunk] + first_row * Traits::kChunkCols;
    ptx::tma_load(to, map, full, ptx::L2Hint::kNormal, from);
  }

  static constexpr int32_t kNoKey = -1;
  static constexpr int32_t kZeroCol = 64;  // of a map of zeros, where it has none of its own
};

}  // namespace flash3::device
