// The producer warp: takes tiles from the scheduler, tells the consumers, and keeps Q, K and V coming through TMA.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "core/tile_scheduler.h"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// A position in a ring of kStages buffers: which buffer, and the parity of its phase that is being waited for. One
// register, since they are short.
template <int kStages>
struct RingState {
  static_assert(kStages > 0 && (kStages & (kStages - 1)) == 0, "a power of two");
  uint32_t step;

  // Consumers wait for the first phase of each buffer, producers for the one before it: at once.
  static __device__ __forceinline__ RingState consumer() { return {0}; }
  static __device__ __forceinline__ RingState producer() { return {kStages}; }

  __device__ __forceinline__ uint32_t index() const { return step % kStages; }
  __device__ __forceinline__ uint32_t parity() const { return step / kStages % 2; }
  __device__ __forceinline__ void advance() { ++step; }
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
  RingState<Traits::kQStages> q_state = RingState<Traits::kQStages>::producer();
  RingState<Traits::kStages> k_state = RingState<Traits::kStages>::producer();
  RingState<Traits::kStages> v_state = RingState<Traits::kStages>::producer();
  RingState<1> out_state = RingState<1>::producer();
  RingState<Traits::kTileSlots> tile_state = RingState<Traits::kTileSlots>::producer();

  __device__ __forceinline__ Producer(const FwdArgs &a, SharedStorage &s) : args(a), smem(s) {}

  // Runs on one whole warp: all lanes look for tiles, one issues the loads.
  __device__ __forceinline__ void run() {
    if (packed_q()) ptx::wait_for_previous_kernel();  // first_m_block is its work
    Job job;
    int64_t t = blockIdx.x;
    do {
      // The next tile is looked for, and its first loads issued, before the last load of this one, which waits longest.
      const Job next = next_job(t);
      if (job.range.count() > 0) load_v(job, job.range.begin);
      job = next;
      t = load_all_but_last(job);
    } while (job.valid);
    if (is_leader()) publish(WorkTile{});  // valid = 0: no more
  }

 private:
  // What the loads of a tile need to know, as TMA coordinates.
  struct Job {
    bool valid = false;  // no: no tile is left
    core::BlockRange range = {0, 0, 0, 0};
    int32_t q_row, q_end, head, batch_q;
    int32_t k_row, k_end, kv_head, batch_k;  // k_row: of key 0
  };

  static __device__ __forceinline__ bool is_leader() { return threadIdx.x % 32 == 0; }

  __device__ __forceinline__ core::Tile decode(int32_t t) const {
    if (packed_q()) {
      return varlen().tile(t, WarpCountLeading{}, [this](int32_t b) {
        return core::Sections::make(args.nheads, args.group, args.k_side.span(b).len * args.kv_bytes_per_key,
                                    args.l2_budget);
      });
    }
    return core::DenseSchedule{args.num_m_blocks, args.nheads, args.batch, args.dense_sections}.tile(t);
  }

  __device__ __forceinline__ bool packed_q() const { return Traits::kVarlen && args.first_m_block != nullptr; }

  static __device__ __forceinline__ core::SeqSpan span(const core::SeqSide &side, int32_t b) {
    if constexpr (Traits::kVarlen) return side.span(b);
    return {0, static_cast<int32_t>(side.rows)};
  }

  __device__ __forceinline__ core::VarlenSchedule varlen() const {
    return {args.first_m_block, args.nheads, args.batch};
  }

  __device__ __forceinline__ int64_t num_tiles() const { return packed_q() ? varlen().num_tiles() : args.num_tiles; }

  // Draws the ticket for this block's next tile: not early, since a block that claims work ahead keeps it from others
  // that will be free sooner, but a load or two before it is needed, so that the answer is there. In the leader only.
  __device__ __forceinline__ int32_t claim() const {
    if (!is_leader()) return 0;
    if (args.tile_counter == nullptr) return INT32_MAX;
    ptx::wait_for_previous_kernel();  // until then the counter is not zero
    return atomicAdd(args.tile_counter, 1);
  }
  static __device__ __forceinline__ int64_t successor(int32_t ticket) {
    return int64_t{gridDim.x} + __shfl_sync(0xffffffffu, ticket, 0);
  }

  // The first tile from number t on that has rows, announced to the consumers, with its first loads on their way.
  __device__ __forceinline__ Job next_job(int64_t t) {
    for (; t < num_tiles(); t = successor(claim())) {
      const core::Tile where = decode(static_cast<int32_t>(t));
      const core::SeqSpan q = span(args.q_side, where.batch);
      const core::SeqSpan k = span(args.k_side, where.batch);
      const int32_t row_begin = where.m_block * Traits::kBlockM;
      if (Traits::kVarlen && row_begin >= q.len) continue;  // seqused_q ends before this tile
      const int32_t row_end = row_begin + min(Traits::kBlockM, q.len - row_begin);

      WorkTile tile;
      tile.m_block = where.m_block;
      tile.head = where.head;
      tile.batch = where.batch;
      tile.valid = 1;
      tile.range = core::block_range({args.window, q.len, k.len}, row_begin, row_end, Traits::kBlockN);
      tile.seqlen_q = q.len;
      tile.seqlen_k = k.len;
      tile.q_start = static_cast<int32_t>(q.start);
      tile.q_end = static_cast<int32_t>(q.start + q.len);
      if (is_leader()) publish(tile);

      Job job;
      job.valid = true;
      job.range = tile.range;
      // Row r of a sequence of length len that ends before row `end` of its tensor is at TMA row (rows - len + r): the
      // bound of that dimension is the end of the sequence, and what lies behind reads as zero.
      job.q_row = static_cast<int32_t>(args.q_side.rows) - q.len + row_begin;
      job.q_end = tile.q_end;
      job.head = where.head;
      job.batch_q = Traits::packed(args.q_side) ? 0 : where.batch;
      job.k_row = static_cast<int32_t>(args.k_side.rows) - k.len;
      job.k_end = static_cast<int32_t>(k.start + k.len);
      job.kv_head = where.head / args.group;
      job.batch_k = Traits::packed(args.k_side) ? 0 : where.batch;
      if (job.range.count() > 0) load_first(job);
      return job;
    }
    return {};
  }

  // What load() needs to know of one of the rings.
  struct Load {
    const CUtensorMap *map, *zero_map;
    int32_t head_dim;
    typename Traits::Element *to;
    uint64_t *full, *empty;
    uint32_t parity, rows;
    ptx::L2Hint hint;
    ptx::TmaCoord at;  // without the column
  };

  // Of a tile that has key blocks: the first block of K, and Q if there is a buffer for it.
  __device__ __forceinline__ void load_first(const Job &job) {
    const Load first_k = load_of_k(job, job.range.end - 1);
    if constexpr (Traits::kQStages == 1) {
      load(first_k);
    } else {
      // In a loop, so that the first tile, when no code is in a cache yet, does not wait for it twice.
      const Load q = load_of_q(job);
#pragma unroll 1
      for (int i = 0; i < 2; ++i) load(i == 0, q, first_k);
    }
  }

  // Loads the other key blocks of a tile, all but its last V, and K one block ahead of V, as the consumers take them.
  // Returns where to go on.
  __device__ __forceinline__ int64_t load_all_but_last(const Job &job) {
    int32_t ticket = 0;
    if (job.valid && job.range.count() <= 1) ticket = claim();
    if (Traits::kQStages == 1 && job.range.count() > 0) load(load_of_q(job));
#pragma unroll 1
    for (int32_t n = job.range.end - 2; n >= job.range.begin; --n) {
      if (n == job.range.begin) ticket = claim();
      load(load_of_k(job, n));
      load_v(job, n + 1);
    }
    return successor(ticket);
  }

  __device__ __forceinline__ Load load_of_q(const Job &job) {
    const uint32_t i = q_state.index();
    const uint32_t parity = q_state.parity();
    q_state.advance();
    return {&args.q_map,
            &args.q_zero_map,
            args.head_dim,
            smem.q[i],
            &smem.q_full[i],
            &smem.q_empty[i],
            parity,
            Traits::kBlockM,
            ptx::L2Hint::kEvictFirst,
            {0, job.q_row, job.q_end, job.head, job.batch_q}};
  }

  __device__ __forceinline__ Load load_of_k(const Job &job, int32_t n) {
    const uint32_t i = k_state.index();
    const uint32_t parity = k_state.parity();
    k_state.advance();
    return {&args.k_map,
            &args.kv_zero_map,
            args.head_dim,
            smem.k[i],
            &smem.k_full[i],
            &smem.k_empty[i],
            parity,
            Traits::kBlockN,
            ptx::L2Hint::kEvictLast,
            {0, job.k_row + n * Traits::kBlockN, job.k_end, job.kv_head, job.batch_k}};
  }

  __device__ __forceinline__ void load_v(const Job &job, int32_t n) {
    if (!Traits::kOverlapsTiles && n == job.range.end - 1) {
      ptx::mbarrier_wait(&smem.out_empty, out_state.parity());  // where the output of the tile before has been staged
      out_state.advance();
    }
    const uint32_t i = v_state.index();
    load({&args.v_map,
          &args.kv_zero_map,
          args.head_dim_v,
          smem.v[i],
          &smem.v_full[i],
          &smem.v_empty[i],
          v_state.parity(),
          Traits::kBlockN,
          ptx::L2Hint::kEvictLast,
          {0, job.k_row + n * Traits::kBlockN, job.k_end, job.kv_head, job.batch_k}});
    v_state.advance();
  }

  // One of two. Field by field, or the compiler keeps both in local memory.
  static __device__ __forceinline__ void load(bool first, const Load &a, const Load &b) {
    load({first ? a.map : b.map,
          first ? a.zero_map : b.zero_map,
          first ? a.head_dim : b.head_dim,
          first ? a.to : b.to,
          first ? a.full : b.full,
          first ? a.empty : b.empty,
          first ? a.parity : b.parity,
          first ? a.rows : b.rows,
          first ? a.hint : b.hint,
          {0, first ? a.at.row : b.at.row, first ? a.at.end : b.at.end, first ? a.at.head : b.at.head,
           first ? a.at.batch : b.at.batch}});
  }

  // Waits until the buffer is free, then loads all column blocks: those that hold columns of the head dim from `map`,
  // the others from `zero_map`.
  static __device__ __forceinline__ void load(const Load &l) {
    if (!ptx::elect_one()) return;
    ptx::mbarrier_wait(l.empty, l.parity);
    ptx::mbarrier_arrive_expect_tx(l.full, l.rows * (Traits::kHeadDim * 2));
#pragma unroll
    for (int c = 0; c < Traits::kColBlocks; ++c) {
      // Selected and not branched to, for the same reason as above.
      const int32_t col = c * Traits::kBoxCols;
      const bool inside = c == 0 || col < l.head_dim;
      const ptx::TmaCoord box = {col, inside ? l.at.row : 0, inside ? l.at.end : 0, inside ? l.at.head : 0,
                                 inside ? l.at.batch : 0};
      ptx::tma_load(l.to + c * l.rows * Traits::kBoxCols, inside ? l.map : l.zero_map, l.full, l.hint, box);
    }
  }

  // In the leader only.
  __device__ __forceinline__ void publish(const WorkTile &tile) {
    ptx::mbarrier_wait(&smem.tile_empty[tile_state.index()], tile_state.parity());
    smem.tile[tile_state.index()] = tile;
    ptx::mbarrier_arrive(&smem.tile_full[tile_state.index()]);  // release: orders the store before it
    tile_state.advance();
  }
};

}  // namespace flash3::device
