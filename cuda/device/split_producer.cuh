// The producer warps of the split-KV kernel, two for K and two for V: one of each two sets the copy engine to it, or
// each copies half of a block row by row.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "core/split_cursor.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/key_boxes.cuh"
#include "device/new_rows.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_ring.cuh"
#include "device/split_side.cuh"
#include "device/split_traits.cuh"
#include "device/tile_loads.cuh"

namespace flash3::device {

template <class Traits>
struct SplitProducer {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kCopyRows = Traits::kCopyRows;
  static constexpr int kPlaces = kCopyRows / 32;  // rows whose places a lane finds

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  SharedStorage &smem;
  const SplitSide side;
  const int half;          // of the rows of a block, where they are copied row by row
  const ptx::L2Hint hint;  // of keys that are loaded once
  SplitRing ring;
  bool awaits_new_rows;
  const int lane = threadIdx.x % 32;

  __device__ __forceinline__ SplitProducer(const SplitArgs &a, const core::SplitSchedule &s, SharedStorage &storage,
                                           SplitSide of, int which, ptx::L2Hint once)
      : args(a),
        schedule(s),
        smem(storage),
        side(of),
        half(which),
        hint(once),
        ring(ring_size<Traits>(a), 1),
        awaits_new_rows(a.follows_append) {}

  __device__ __forceinline__ void run(core::SplitCursor cursor) {
    if (Traits::kPacked && half > 0 && args.key_loads == KeyLoads::kTma) return;  // it has nothing to load
    do load_pieces(cursor);
    while (Traits::kPacked && cursor.take_surplus());
  }

 private:
  // Until the cursor is done.
  __device__ __forceinline__ void load_pieces(core::SplitCursor &cursor) {
    if (args.key_loads == KeyLoads::kAsyncCopy) {
      for_each_piece(cursor, [this](const auto &piece, const auto &span) { copy_rows(piece, span); });
    } else if (half == 0) {
      for_each_piece(cursor, [this](const auto &piece, const auto &span) {
        if (schedule.k.page_table != nullptr) {
          load_pages(piece, span);
        } else {
          load_blocks(piece, span);
        }
      });
    }
  }

  template <class Body>
  __device__ __forceinline__ void for_each_piece(core::SplitCursor &cursor, Body body) {
#pragma unroll 1
    for (; !cursor.done(); cursor.advance()) {
      const core::SplitPiece piece = cursor.piece();
      if (piece.n_begin >= piece.n_end) continue;
      core::KeySpan span = schedule.k.span(piece.batch);
      // Of some queries, keys that they see alone: others' NaN would reach their products.
      if constexpr (Traits::kPacked) span.len = piece.lengths.seqlen_k;
      body(piece, span);
    }
  }

  __device__ __forceinline__ void load(const core::SplitPiece &piece, const ptx::TmaCoord &at) {
    const bool once = schedule.num_m_blocks(piece.lengths) == 1;
    const BoxLoad<Traits> box = {map_of(args, side),
                                 &args.kv_zero_map,
                                 head_dim_of(args, side),
                                 smem.kv[ring.index][side],
                                 &smem.barriers.full[side][ring.index],
                                 &smem.barriers.empty[side][ring.index],
                                 ring.parity,
                                 kBlockN,
                                 once ? hint : ptx::L2Hint::kEvictLast,
                                 at};
    load_boxes(box);
    __syncwarp();
    ring.advance();
  }

  // What has to be done for the new rows of a piece before they are loaded.
  __device__ __forceinline__ auto new_rows_of(const core::SplitPiece &piece, const core::KeySpan &span) {
    if constexpr (Traits::kAppends) {
      return WrittenRow<Traits>(args, schedule.k, piece, span, side, half, ring.size);
    } else {
      return AwaitedRows<Traits>(span, &awaits_new_rows);
    }
  }

  __device__ __forceinline__ void load_blocks(const core::SplitPiece &piece, const core::KeySpan &span) {
    auto new_rows = new_rows_of(piece, span);
#pragma unroll 1
    for (int32_t n = piece.n_begin; n < piece.n_end; n += piece.n_step) {
      new_rows.before(n);
      load(piece, key_box(schedule.k, span, piece.kv_head, n * kBlockN));
    }
  }

  __device__ __forceinline__ void load_pages(const core::SplitPiece &piece, const core::KeySpan &span) {
    auto new_rows = new_rows_of(piece, span);
    int32_t pages = 0;  // of the blocks n, n + n_step, .. in lanes 0, 1, ..
#pragma unroll 1
    for (int32_t i = 0, n = piece.n_begin; n < piece.n_end; ++i, n += piece.n_step) {
      if (i % 32 == 0) {
        const int64_t own = n + int64_t{lane} * piece.n_step;
        pages = own >= piece.n_end ? 0 : static_cast<int32_t>(schedule.k.place(span, own * kBlockN).entry);
      }
      new_rows.before(n);
      const int32_t page = __shfl_sync(0xffffffffu, pages, i % 32);
      load(piece, key_box_of_page(schedule.k, span, piece.kv_head, int64_t{n} * kBlockN, page));
    }
  }

  // What the page table says of a lane's rows of block n.
  struct Pages {
    int32_t id[kPlaces];
  };
  // Their element offsets in the tensor; -1 behind the last key.
  struct Places {
    int64_t offset[kPlaces];
  };

  __device__ __forceinline__ int64_t own_key(int32_t n, int i) const {
    return int64_t{n} * kBlockN + half * kCopyRows + 32 * i + lane;
  }

  // Nothing waits for the answer here; and to wait for the one before would be to wait for both, if this question were
  // asked first.
  __device__ __forceinline__ Pages pages(const core::KeySpan &span, int32_t n, const Places &before) const {
    Pages out;
    int64_t zero = 0;
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) zero |= before.offset[i];
    zero &= int64_t{args.zero};
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      const int64_t key = own_key(n, i);
      out.id[i] = 0;
      if (key < span.len && schedule.k.page_table != nullptr) {
        out.id[i] = schedule.k.page_id(span, span.first_row + key + zero);
      }
    }
    return out;
  }

  __device__ __forceinline__ Places places(const core::SplitPiece &piece, const core::KeySpan &span, int32_t n,
                                           const Pages &pages) const {
    Places out;
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      const int64_t key = own_key(n, i);
      out.offset[i] = -1;
      if (key >= span.len) continue;
      const core::RowPlace at = schedule.k.place(span, span.first_row + key, pages.id[i]);
      const TensorRows &t = tensor_of(args, side);
      out.offset[i] = at.entry * t.batch_stride + at.row * t.row_stride + piece.kv_head * t.head_stride;
    }
    return out;
  }

  // Eight lanes to a row, which copy 128 bytes of it, four rows at a time.
  __device__ __forceinline__ void copy_rows(const core::SplitPiece &piece, const core::KeySpan &span) {
    const auto *const data = static_cast<const Element *>(tensor_of(args, side).data);
    const int32_t cols = head_dim_of(args, side);
    Pages next = pages(span, piece.n_begin, {});
    auto new_rows = new_rows_of(piece, span);
#pragma unroll 1
    for (int32_t n = piece.n_begin; n < piece.n_end; n += piece.n_step) {
      const Places now = places(piece, span, n, next);
      if (n + piece.n_step < piece.n_end) next = pages(span, n + piece.n_step, now);
      new_rows.before(n);
      ptx::mbarrier_wait(&smem.barriers.empty[side][ring.index], ring.parity);
      const uint32_t to = ptx::shared_address(smem.kv[ring.index][side]);
#pragma unroll
      for (int group = 0; group < kCopyRows / 4; ++group) {
        const int row = 4 * group + lane / 8;  // among this warp's
        const int64_t offset = __shfl_sync(0xffffffffu, now.offset[group / 8], row % 32);
#pragma unroll
        for (int first = 0; first < Traits::kHeadDim; first += 64) {
          const int col = first + lane % 8 * 8;
          if (first + 64 > Traits::kHeadDim && col >= Traits::kHeadDim) continue;
          const bool inside = offset >= 0 && col < cols;
          ptx::cp_async_16(to + Traits::template offset<kBlockN>(half * kCopyRows + row, col),
                           data + (inside ? offset + col : 0), inside ? 16 : 0);
        }
      }
      ptx::cp_async_mbarrier_arrive(&smem.barriers.full[side][ring.index]);
      ring.advance();
    }
  }
};

}  // namespace flash3::device
