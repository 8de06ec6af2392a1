// Finding out what a tile is, and loading Q, K and V for it through TMA.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/tile_scheduler.h"
#include "device/barriers.cuh"
#include "device/cluster.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_rows.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// By one lane, before anything is loaded.
__device__ __forceinline__ void prefetch_tensormaps(const FwdArgs &args) {
  ptx::prefetch_tensormap(&args.q_map);
  ptx::prefetch_tensormap(&args.k_map);
  ptx::prefetch_tensormap(&args.v_map);
  ptx::prefetch_tensormap(&args.out_map);
}

// How many of 32 probes hold, from the first on, one probe a lane (core::find_sequence).
struct WarpCountLeading {
  template <class Probe>
  __device__ __forceinline__ int32_t operator()(Probe probe) const {
    const uint32_t passed = __ballot_sync(0xffffffffu, probe(threadIdx.x % 32));
    return __popc(passed);  // probes are monotone: those that hold come first
  }
};

// Loading a tile of Q or a block of K or V.
template <class Traits>
struct BoxLoad {
  const CUtensorMap *map, *zero_map;
  int32_t head_dim;
  typename Traits::Element *to;
  uint64_t *full, *empty;
  uint32_t parity, rows;
  ptx::L2Hint hint;
  ptx::TmaCoord at;  // of the first column block
};

// Waits until the buffer is free, then loads all column blocks: those that hold columns of the head dim from `map`, the
// others from `zero_map`. Where the blocks of a pair share them, the first one loads the even ones or the odd ones.
enum class Share { kAll, kEven, kOdd };
// kFresh: nothing has been in the buffer, so there is nothing to wait for.
template <class Traits, int kColBlocks = Traits::kColBlocks, Share kShare = Share::kAll, bool kFresh = false>
__device__ __forceinline__ void load_boxes(const BoxLoad<Traits> &l) {
  // All lanes wait: if one waited for all, the others would go on to the next load, apart from it, and every
  // instruction of the producer would be issued twice.
  if constexpr (!kFresh) ptx::mbarrier_wait(l.empty, l.parity);
  if (!ptx::elect_one()) return;
  ptx::mbarrier_arrive_expect_tx(l.full, l.rows * (kColBlocks * Traits::kBoxCols * 2));
#pragma unroll
  for (int c = 0; c < kColBlocks; ++c) {
    // Selected and not branched to: the boxes of a block are issued one right after the other.
    const int32_t col = l.at.col + c * Traits::kBoxCols;
    const bool inside = (c == 0 && l.at.col == 0) || col < l.head_dim;
    const ptx::TmaCoord box = {col, inside ? l.at.row : 0, inside ? l.at.end : 0, inside ? l.at.head : 0,
                               inside ? l.at.batch : 0};
    auto *const to = l.to + c * l.rows * Traits::kBoxCols;
    const CUtensorMap *const map = inside ? l.map : l.zero_map;
    if constexpr (kShare == Share::kAll) {
      ptx::tma_load(to, map, l.full, l.hint, box);
    } else if ((c + (kShare == Share::kOdd)) % 2 == ptx::cluster_rank()) {
      ptx::tma_load_both(to, map, l.full, l.hint, box);
    }
  }
}

template <class Traits>
struct TileLoads {
  using SharedStorage = typename Traits::SharedStorage;
  using Job = typename Traits::Job;

  const FwdArgs &args;
  SharedStorage &smem;

  __device__ __forceinline__ core::Tile decode(int32_t t) const {
    if constexpr (!Traits::kPieces) return decode_tile(t);
    const auto number = static_cast<int32_t>(args.pieces.quotient(static_cast<uint32_t>(t)));
    core::Tile tile = decode_tile(number);
    tile.piece = t - number * static_cast<int32_t>(args.pieces.divisor);
    return tile;
  }

  __device__ __forceinline__ core::Tile decode_tile(int32_t t) const {
    if (packed_q()) {
      return varlen().tile(t, WarpCountLeading{}, [this](int32_t b) {
        const int64_t in_use = core::keys_in_use(args.window, keys(b).len, Traits::kBlockM);
        return core::Sections::make(args.nheads, args.group, in_use * args.kv_bytes_per_key, args.l2_budget);
      });
    }
    core::Tile tile = args.dense_schedule.tile(t);
    if constexpr (Traits::kPaired) {
      tile.m_block = core::tile_of_pair(tile.m_block, static_cast<int32_t>(ptx::cluster_rank()), args.num_m_blocks);
    }
    return tile;
  }

  __device__ __forceinline__ bool packed_q() const { return Traits::packed(args.q_side); }

  static __device__ __forceinline__ core::SeqSpan span(const core::SeqSide &side, int32_t b) {
    if constexpr (Traits::kVarlen) return side.span(b);
    return {0, static_cast<int32_t>(side.rows)};
  }

  // Where the keys of a sequence are: the first row, in a batch entry, in the packed tensor or in the pages of a row of
  // the page table.
  struct Keys {
    int64_t start;
    int32_t len;
    int32_t entry;
  };

  __device__ __forceinline__ Keys keys(int32_t b) const {
    if constexpr (Traits::kCache) {
      const core::KeySpan k = args.cache.span(b);
      return {k.first_row, k.len, static_cast<int32_t>(k.entry)};
    } else {
      const core::SeqSpan k = span(args.k_side, b);
      return {k.start, k.len, Traits::packed(args.k_side) ? 0 : b};
    }
  }

  __device__ __forceinline__ core::VarlenSchedule varlen() const {
    if constexpr (Traits::kMostAddedUp > 0) {
      if (args.first_m_block == nullptr) return {smem.first_m_block, args.nheads, args.batch};
    }
    return {args.first_m_block, args.nheads, args.batch};
  }

  // Or pieces of them.
  __device__ __forceinline__ int64_t num_tiles() const {
    const int64_t tiles = packed_q() ? varlen().num_tiles() : args.num_tiles;
    return Traits::kPieces ? tiles * args.pieces.divisor : tiles;
  }

  // What loads and consumers need to know of a tile; false if it has no rows.
  __device__ __forceinline__ bool describe(const core::Tile &where, WorkTile *tile, Job *job) const {
    return describe(where, span(args.q_side, where.batch), keys(where.batch), tile, job);
  }

  __device__ __forceinline__ bool describe(const core::Tile &where, const core::SeqSpan &q, const Keys &k,
                                           WorkTile *tile, Job *job) const {
    const TileRows<Traits> rows{args};
    const int32_t row_begin = where.m_block * Traits::kBlockM;
    const auto num_rows = static_cast<int32_t>(rows.count(q.len));
    if (Traits::kVarlen && row_begin >= num_rows) return false;  // seqused_q ends before this tile
    const int32_t row_end = row_begin + min(Traits::kBlockM, num_rows - row_begin);

    tile->m_block = where.m_block;
    tile->head = where.head;
    tile->batch = where.batch;
    tile->valid = 1 + where.piece;
    tile->range = core::block_range({args.window, q.len, k.len}, static_cast<int32_t>(rows.query(row_begin)),
                                    static_cast<int32_t>(rows.query(row_end - 1)) + 1, Traits::kBlockN);
    if constexpr (Traits::kPieces) {
      tile->range = core::piece_of(tile->range, where.piece, static_cast<int32_t>(args.pieces.divisor));
    }
    tile->seqlen_q = q.len;
    tile->seqlen_k = k.len;
    tile->q_start = static_cast<int32_t>(q.start);
    tile->q_end = static_cast<int32_t>(q.start + q.len);

    job->valid = true;
    job->range = tile->range;
    set_queries(q, where, job);
    set_keys(k, where.head, job);
    return true;
  }

  // Row r of a sequence of length len that ends before row `end` of its tensor is at TMA row (rows - len + r): the
  // bound of that dimension is the end of the sequence, and what lies behind reads as zero.
  __device__ __forceinline__ void set_queries(const core::SeqSpan &q, const core::Tile &where, Job *job) const {
    const TileRows<Traits> rows{args};
    job->q_row = static_cast<int32_t>(args.q_side.rows) - q.len +
                 static_cast<int32_t>(rows.query(int64_t{where.m_block} * Traits::kBlockM));
    job->q_end = static_cast<int32_t>(q.start + q.len);
    job->head = where.head * rows.pack();
    job->batch_q = Traits::packed(args.q_side) ? 0 : where.batch;
  }

  __device__ __forceinline__ void set_keys(const Keys &k, int32_t head, Job *job) const {
    job->k_row = static_cast<int32_t>(args.k_side.rows) - k.len;
    job->k_end = static_cast<int32_t>(k.start + k.len);
    job->kv_head = static_cast<int32_t>(args.group_divisor.quotient(head));
    job->batch_k = k.entry;
  }

  using Load = BoxLoad<Traits>;

  __device__ __forceinline__ Load load_of_q(const Job &job, RingState<Traits::kQStages> state) const {
    const uint32_t i = state.index();
    ptx::TmaCoord at = {Traits::first_column(), job.q_row, job.q_end, job.head, job.batch_q};
    if constexpr (Traits::kPieces) at = TileRows<Traits>::in_order_of_map(at);
    return {&args.q_map,
            &args.q_zero_map,
            args.head_dim,
            smem.q[i],
            &smem.barriers.q_full[i],
            &smem.barriers.q_empty[i],
            state.parity(),
            Traits::kBlockM,
            ptx::L2Hint::kEvictFirst,
            at};
  }

  __device__ __forceinline__ Load load_of_k(const Job &job, int32_t n, RingState<Traits::kStages> state) const {
    const uint32_t i = state.index();
    return {&args.k_map,
            &args.kv_zero_map,
            args.head_dim,
            smem.k[i],
            &smem.barriers.k_full[i],
            &smem.barriers.k_empty[i],
            state.parity(),
            Traits::kBlockN,
            ptx::L2Hint::kEvictLast,
            {Traits::first_column(), job.k_row + n * Traits::kBlockN, job.k_end, job.kv_head, job.batch_k}};
  }

  __device__ __forceinline__ Load load_of_v(const Job &job, int32_t n, RingState<Traits::kStages> state) const {
    const uint32_t i = state.index();
    return {&args.v_map,
            &args.kv_zero_map,
            args.head_dim_v,
            smem.v[i],
            &smem.barriers.v_full[i],
            &smem.barriers.v_empty[i],
            state.parity(),
            Traits::kBlockN,
            ptx::L2Hint::kEvictLast,
            {Traits::first_column(), job.k_row + n * Traits::kBlockN, job.k_end, job.kv_head, job.batch_k}};
  }

  // Of Q, of K, and of V.
  template <bool kFresh = false>
  static __device__ __forceinline__ void load(const Load &l) {
    load_boxes<Traits, Traits::kColBlocks, Share::kAll, kFresh>(l);
  }
  // Those of V go the other way, so that both blocks of a pair load as much where the column blocks are odd in number.
  template <bool kFresh = false>
  static __device__ __forceinline__ void load_keys(const Load &l) {
    load_boxes<Traits, Traits::kColBlocks, Traits::kPaired ? Share::kEven : Share::kAll, kFresh>(l);
  }
  template <bool kFresh = false>
  static __device__ __forceinline__ void load_values(const Load &l) {
    load_boxes<Traits, Traits::kColBlocksV, Traits::kPaired ? Share::kOdd : Share::kAll, kFresh>(l);
  }
};

}  // namespace flash3::device
