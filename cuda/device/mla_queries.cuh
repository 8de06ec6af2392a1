// The warps of the kernel of latent attention that find out what the next piece is and copy Q for it, while the
// consumers are at the last product of the one before.
#pragma once

#include <cstdint>

#include "core/split_cursor.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/mla_traits.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"

namespace flash3::device {

template <class Traits>
struct MlaQueries {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  SharedStorage &smem;
  const int rank;    // of the thread block, among those of a tile
  const int thread;  // of kQueryThreads

  __device__ __forceinline__ void run(core::SplitCursor cursor) const {
    uint32_t count = 0;
#pragma unroll 1
    for (; !cursor.done(); cursor.advance(), ++count) {
      const core::SplitPiece piece = cursor.piece();
      const core::SeqSpan span = schedule.q.span(piece.batch);
      // The products with Q of the piece before have been computed; hence the one before that is done with altogether.
      ptx::mbarrier_wait(&smem.barriers.q_empty, (count + 1) % 2);
      if (thread == 0) smem.jobs[count % 2] = {piece, static_cast<int32_t>(span.start), false};
      if (piece.n_begin < piece.n_end) copy(piece, span);
      publish();
    }
    ptx::mbarrier_wait(&smem.barriers.q_empty, (count + 1) % 2);
    if (thread == 0) smem.jobs[count % 2].done = true;
    publish();
  }

 private:
  __device__ __forceinline__ void publish() const {
    ptx::cp_async_mbarrier_arrive(&smem.barriers.q_full);
    if (thread == 0) ptx::mbarrier_arrive(&smem.barriers.q_full);
  }

  // The rows of this thread block, eight lanes to a row, and zeros up to the end of the last warp's: whether a warp
  // raises its references depends on all of its rows, so what lies behind the last one must not be what some other
  // kernel left. The rows of warps that have none may be anything: a row of a product depends on nothing but its own
  // row of Q.
  __device__ __forceinline__ void copy(const core::SplitPiece &piece, const core::SeqSpan &span) const {
    const int32_t first = rank * Traits::kBlockM;
    constexpr int32_t kWarpRows = 16;
    const int32_t rows = max(min(schedule.tile_rows(piece.lengths, piece.m_block) - first, Traits::kBlockM), 0);
    const int32_t end = (rows + kWarpRows - 1) / kWarpRows * kWarpRows;
    const uint32_t to = ptx::shared_address(smem.q);
#pragma unroll 1
    for (int32_t row = thread / 8; row < end; row += Traits::kQueryThreads / 8) {
      const int64_t packed = int64_t{piece.m_block} * schedule.block_m + first + min(row, rows - 1);
      const uint32_t bytes = row < rows ? 16 : 0;
      const int32_t query = schedule.query(packed);
      const auto in_group = static_cast<int32_t>(packed - int64_t{query} * schedule.group.divisor);
      const auto *const from = row_of<Element>(args.q, piece.batch, span.start + query,
                                               int64_t{piece.kv_head} * schedule.group.divisor + in_group);
      const int col = thread % 8 * 8;
#pragma unroll
      for (int c = 0; c < Traits::kChunks; ++c) {
        ptx::cp_async_16(to + Traits::offset(row, col) + c * Traits::kChunkBytes, from + c * Traits::kChunkCols + col,
                         bytes);
      }
    }
  }
};

}  // namespace flash3::device
