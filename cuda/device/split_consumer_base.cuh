// What the consumer warps of the split-KV kernel have in common, however they compute: they walk through the pieces of
// a part, and load the queries of the next one while they compute one.
#pragma once

#include <cstdint>

#include "core/split_cursor.h"
#include "core/split_schedule.h"
#include "device/fwd_args.h"
#include "device/new_rows.cuh"
#include "device/packed_rows.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"
#include "device/split_ring.cuh"

namespace flash3::device {

// Consumer: what is derived from this, with compute(piece, next, part), which computes a piece. Its queries are there
// for all warps behind sync(), and those of the next one to be asked for behind that; they have to be awaited in the
// end.
template <class Traits, class Consumer>
struct SplitConsumerBase {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  static constexpr uint32_t kBarrier = 0;  // named barrier

  const SplitArgs &args;
  const core::SplitSchedule &schedule;
  SharedStorage &smem;
  const ptx::L2Hint hint;  // of results of whole tiles
  SplitRing k_ring, v_ring;
  int q_buffer = 0;

  __device__ __forceinline__ SplitConsumerBase(const SplitArgs &a, const core::SplitSchedule &s, SharedStorage &storage,
                                               ptx::L2Hint of_results)
      : args(a),
        schedule(s),
        smem(storage),
        hint(Traits::kPlain ? of_results : ptx::L2Hint::kNormal),
        k_ring(ring_size<Traits>(a), 0),
        v_ring(ring_size<Traits>(a), 0) {}

  __device__ __forceinline__ void run(core::SplitCursor cursor, const core::SplitPartId &part) {
    // Also where there is nothing to do, so that this kernel ends behind the one before.
    if (args.follows_append) ptx::wait_for_previous_kernel();
    if constexpr (Traits::kPacked) return run_packed(cursor, part);
    if (cursor.done()) return;
    core::SplitPiece piece = cursor.piece();
    load_q(piece, q_buffer);
    await_q();
#pragma unroll 1
    while (true) {
      cursor.advance();
      static_cast<Consumer &>(*this).compute(piece, cursor, part);
      if (cursor.done()) return;
      piece = cursor.piece();
      q_buffer ^= 1;
    }
  }

 protected:
  // All consumer warps have come here, with what they have copied to shared memory or read from it.
  __device__ __forceinline__ void sync() const { ptx::bar_sync(kBarrier, Traits::kConsumerThreads); }

  // The row of q and out that a tile's rows are counted from.
  __device__ __forceinline__ int64_t first_row_of(const core::SplitPiece &piece) const {
    return schedule.first_row(piece.batch) + (Traits::kPacked ? piece.first_query : 0);
  }

  // Starts to load the rows of the tile, if the piece has keys, in the layout of the tensor maps. What lies behind them
  // in shared memory may be anything: a row of a product depends on nothing but its own row of Q.
  __device__ __forceinline__ void load_q(const core::SplitPiece &piece, int buffer) const {
    constexpr int kChunks = Traits::kHeadDim / 8;
    if (piece.n_begin >= piece.n_end) return;
    const int64_t first_row = first_row_of(piece);
    const int32_t rows = schedule.tile_rows(piece.lengths, piece.m_block);
    const uint32_t to = ptx::shared_address(smem.q[buffer]);
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < rows * kChunks; i += Traits::kConsumerThreads) {
      const int row = i / kChunks;
      const int col = i % kChunks * 8;
      const int64_t packed = int64_t{piece.m_block} * schedule.kBlockM + row;
      const int32_t query = schedule.query(packed);
      const auto in_group = static_cast<int32_t>(packed - int64_t{query} * schedule.group.divisor);
      const bool inside = col < args.head_dim;
      const auto *const from = row_of<Element>(args.q, piece.batch, first_row + query,
                                               int64_t{piece.kv_head} * schedule.group.divisor + in_group);
      ptx::cp_async_16(to + Traits::template offset<Traits::kBlockM>(PackedRows::place(row, few_rows()), col),
                       from + (inside ? col : 0), inside ? 16 : 0);
    }
    if constexpr (Traits::kAppends) load_angles<Traits>(args, smem, piece.batch, buffer);
  }

  __device__ __forceinline__ void load_next_q(const core::SplitCursor &next) const {
    if (!next.done()) load_q(next.piece(), q_buffer ^ 1);
  }

  // This thread's copies of the q asked for last.
  __device__ __forceinline__ void await_q() const {
    ptx::cp_async_wait_all();
    if constexpr (!Traits::kByWarps) ptx::fence_proxy_async_shared();
  }

  // Behind sync(), of a piece with keys: turns its queries, if this kernel has to.
  __device__ __forceinline__ void turn_q(const core::SplitPiece &piece) const {
    if constexpr (Traits::kAppends) {
      if (args.new_rows.rotary.columns == 0) return;
      turn_queries<Traits>(args, smem, schedule.tile_rows(piece.lengths, piece.m_block), q_buffer, few_rows());
      if constexpr (!Traits::kByWarps) ptx::fence_proxy_async_shared();
      sync();
    }
  }

  __device__ __forceinline__ bool few_rows() const { return Traits::kPlain && !Traits::kByWarps && args.few_rows; }

 private:
  // Behind the line there may be surplus queries, whose rows are asked for when everything else is done: only then is
  // the place free through which the blocks of a cluster merge (ClusterExchange).
  __device__ __forceinline__ void run_packed(core::SplitCursor cursor, const core::SplitPartId &part) {
    bool there = false;  // the queries of the piece
#pragma unroll 1
    while (true) {
      if (cursor.done()) {
        if (!cursor.take_surplus()) return;
        there = false;
      }
      const core::SplitPiece piece = cursor.piece();
      if (!there) {
        sync();
        load_q(piece, q_buffer);
        await_q();
      }
      cursor.advance();
      if (piece.lengths.seqlen_q > 0) {
        static_cast<Consumer &>(*this).compute(piece, cursor, part);
      } else {
        sync();
        load_next_q(cursor);
        await_q();
      }
      there = true;
      q_buffer ^= 1;
    }
  }
};

}  // namespace flash3::device
