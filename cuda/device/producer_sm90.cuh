// The producer warp: takes tiles from the scheduler, tells the consumers, and keeps Q, K and V coming through TMA.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/tile_scheduler.h"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// A ring position: which of kStages buffers, and the parity of the phase that is being waited for.
template <int kStages>
struct RingState {
  uint32_t index = 0;
  uint32_t parity;

  __device__ __forceinline__ explicit RingState(uint32_t first_parity) : parity(first_parity) {}
  __device__ __forceinline__ void advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

// How many of 32 probes hold, from the first on, one probe a lane (core::find_sequence).
struct WarpCountLeading {
  template <class Probe>
  __device__ __forceinline__ int32_t operator()(Probe probe) const {
    const uint32_t passed = __ballot_sync(0xffffffffu, probe(threadIdx.x % 32));
    return __popc(passed);  // probes are monotone: those that hold come first
  }
};

template <class Traits>
struct Producer {
  using SharedStorage = typename Traits::SharedStorage;

  const FwdArgs &args;
  SharedStorage &smem;
  RingState<1> q_state{1};  // producers wait for the phase before the first: at once
  RingState<Traits::kStages> k_state{1}, v_state{1};
  RingState<2> tile_state{1};

  __device__ __forceinline__ Producer(const FwdArgs &a, SharedStorage &s) : args(a), smem(s) {}

  // Runs on one whole warp.
  __device__ __forceinline__ void run() {
    const bool leader = threadIdx.x % 32 == 0;
    const core::VarlenSchedule varlen{args.first_m_block, args.nheads, args.batch};
    const int64_t num_tiles =
        args.first_m_block != nullptr ? varlen.num_tiles() : int64_t{args.num_m_blocks} * args.nheads * args.batch;
    int64_t next = blockIdx.x;
    while (next < num_tiles) {
      const int32_t ticket = run_tile(static_cast<int32_t>(next), varlen, leader);
      next = int64_t{gridDim.x} + __shfl_sync(0xffffffffu, ticket, 0);
    }
    if (leader) publish(WorkTile{});  // valid = 0: no more
  }

 private:
  __device__ __forceinline__ core::Tile decode(int32_t t, const core::VarlenSchedule &varlen) const {
    if (args.first_m_block != nullptr) {
      return varlen.tile(t, WarpCountLeading{}, [this](int32_t b) {
        return core::Sections::make(args.nheads, args.group, args.k_side.span(b).len * args.kv_bytes_per_key,
                                    args.l2_budget);
      });
    }
    return core::DenseSchedule{args.num_m_blocks, args.nheads, args.batch, args.dense_sections}.tile(t);
  }

  // Takes the number of this block's next tile: not at once, since a block that claims work early keeps it from others
  // that will be free sooner, but before the last load, so that the answer is there when it is needed.
  __device__ __forceinline__ int32_t claim() const { return atomicAdd(args.tile_counter, 1); }

  // Returns the leader's ticket for the next tile.
  __device__ __forceinline__ int32_t run_tile(int32_t t, const core::VarlenSchedule &varlen, bool leader) {
    const core::Tile where = decode(t, varlen);
    const core::SeqSpan q = args.q_side.span(where.batch);
    const core::SeqSpan k = args.k_side.span(where.batch);
    const int32_t row_begin = where.m_block * Traits::kBlockM;
    if (row_begin >= q.len) return leader ? claim() : 0;  // seqused_q ends before this tile
    const int32_t row_end = row_begin + min(Traits::kBlockM, q.len - row_begin);
    const core::Mask mask{args.window, q.len, k.len};
    const core::BlockRange range = core::block_range(mask, row_begin, row_end, Traits::kBlockN);
    if (!leader) return 0;

    WorkTile tile;
    tile.m_block = where.m_block;
    tile.head = where.head;
    tile.batch = where.batch;
    tile.valid = 1;
    tile.range = range;
    tile.seqlen_q = q.len;
    tile.seqlen_k = k.len;
    tile.q_start = static_cast<int32_t>(q.start);
    tile.q_end = static_cast<int32_t>(q.start + q.len);
    publish(tile);
    if (range.count() == 0) return claim();

    const int32_t batch_q = args.q_side.cu_seqlens != nullptr ? 0 : where.batch;
    const int32_t batch_k = args.k_side.cu_seqlens != nullptr ? 0 : where.batch;
    const int32_t kv_head = where.head / args.group;
    // Row r of a sequence of length len that ends before row `end` of its tensor is at TMA row (rows - len + r): the
    // bound of that dimension is the end of the sequence, and what lies behind reads as zero.
    const int32_t q_row0 = static_cast<int32_t>(args.q_side.rows) - q.len + row_begin;
    const int32_t k_row0 = static_cast<int32_t>(args.k_side.rows) - k.len;
    const int32_t k_end = static_cast<int32_t>(k.start + k.len);

    auto load_k = [&](int32_t n) {
      load<Traits::kBlockN, Traits::kKBytes>(smem.k[k_state.index], args.k_map, args.kv_zero_map, args.head_dim,
                                             smem.k_full[k_state.index], smem.k_empty[k_state.index], k_state.parity,
                                             ptx::L2Hint::kEvictLast,
                                             {0, k_row0 + n * Traits::kBlockN, k_end, kv_head, batch_k});
      k_state.advance();
    };
    auto load_v = [&](int32_t n) {
      load<Traits::kBlockN, Traits::kVBytes>(smem.v[v_state.index], args.v_map, args.kv_zero_map, args.head_dim_v,
                                             smem.v_full[v_state.index], smem.v_empty[v_state.index], v_state.parity,
                                             ptx::L2Hint::kEvictLast,
                                             {0, k_row0 + n * Traits::kBlockN, k_end, kv_head, batch_k});
      v_state.advance();
    };

    // K before Q, whose buffer may come free later; and K one block ahead of V, as the consumers take them.
    load_k(range.end - 1);
    load<Traits::kBlockM, Traits::kQBytes>(smem.q, args.q_map, args.q_zero_map, args.head_dim, smem.q_full,
                                           smem.q_empty, q_state.parity, ptx::L2Hint::kEvictFirst,
                                           {0, q_row0, tile.q_end, where.head, batch_q});
    q_state.advance();
#pragma unroll 1
    for (int32_t n = range.end - 2; n >= range.begin; --n) {
      load_k(n);
      load_v(n + 1);
    }
    const int32_t ticket = claim();
    load_v(range.begin);
    return ticket;
  }

  // Waits until the buffer is free, then loads all column blocks of a tile of kRows rows: those that hold columns of
  // the head dim from `map`, the others from `zero_map`.
  template <int kRows, uint32_t kBytes>
  __device__ __forceinline__ void load(typename Traits::Element *dst, const CUtensorMap &map,
                                       const CUtensorMap &zero_map, int32_t head_dim, uint64_t &full,
                                       const uint64_t &empty, uint32_t parity, ptx::L2Hint hint, ptx::TmaCoord at) {
    ptx::mbarrier_wait(&empty, parity);
    ptx::mbarrier_arrive_expect_tx(&full, kBytes);
#pragma unroll
    for (int c = 0; c < Traits::kColBlocks; ++c) {
      at.col = c * Traits::kBoxCols;
      typename Traits::Element *box = dst + c * kRows * Traits::kBoxCols;
      if (c == 0 || at.col < head_dim) {
        ptx::tma_load(box, &map, &full, hint, at);
      } else {
        ptx::tma_load(box, &zero_map, &full, hint, {at.col, 0, 0, 0, 0});
      }
    }
  }

  __device__ __forceinline__ void publish(const WorkTile &tile) {
    ptx::mbarrier_wait(&smem.tile_empty[tile_state.index], tile_state.parity);
    smem.tile[tile_state.index] = tile;
    ptx::mbarrier_arrive(&smem.tile_full[tile_state.index]);  // release: orders the store before it
    tile_state.advance();
  }
};

}  // namespace flash3::device
