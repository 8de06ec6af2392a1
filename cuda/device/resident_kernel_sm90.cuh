// The forward kernel for few keys: all keys of a sequence fit one block. K and V of a sequence and KV head are loaded
// once and stay until all tiles of all query heads that share them are done. Every consumer warpgroup works on a tile
// of its own: such a tile is a chain of steps, each waiting for the one before, and what fills the gaps is the chains
// of the other warpgroups.
#pragma once

#include <cstdint>

#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/ptx.cuh"
#include "device/resident_traits.cuh"
#include "device/tile_loads.cuh"

namespace flash3::device {

// A unit is what shares K and V: a KV head of a sequence, with the tiles of all its query heads, which follow each
// other. Of the tiles and units of a thread block, numbered from 0 on, a stream, one of its warpgroups, has every
// kStreams-th tile.
template <class Traits>
struct ResidentTiles {
  const FwdArgs &args;
  const uint32_t block = ptx::uniform(blockIdx.x);
  const uint32_t end = ptx::uniform(args.units.count(block));
  // Where the tiles begin that the block has beside its whole units: in which unit of the call, and behind how many
  // tiles of that one, which are another block's.
  const uint32_t first_beside = ptx::uniform(args.units.left_over(block));
  const uint32_t unit_beside = ptx::uniform(args.units.tiles_of_unit.quotient(first_beside));
  const uint32_t skipped = first_beside - unit_beside * args.units.tiles_of_unit.divisor;

  __device__ __forceinline__ explicit ResidentTiles(const FwdArgs &a) : args(a) {}

  // The unit of tile i, and the one behind the last where there is no such tile.
  __device__ __forceinline__ uint32_t unit(uint32_t i) const {
    return args.units.tiles_of_unit.quotient(place(min(i, end - 1))) + (i >= end ? 1 : 0);
  }
  __device__ __forceinline__ core::Tile first_of_unit(uint32_t u) const { return tile_of(first_number(u)); }
  __device__ __forceinline__ core::Tile tile(uint32_t i) const {
    const uint32_t at = place(i);
    const uint32_t u = args.units.tiles_of_unit.quotient(at);
    return tile_of(first_number(u) + at - u * args.units.tiles_of_unit.divisor);
  }

 private:
  // Of a tile among those of the block's units, also those that are not its own.
  __device__ __forceinline__ uint32_t place(uint32_t i) const { return i < args.units.whole() ? i : i + skipped; }
  // Of a unit's first tile, among those of the call.
  __device__ __forceinline__ uint32_t first_number(uint32_t u) const {
    const uint32_t rounds = args.units.rounds;
    const uint32_t number = u < rounds ? block + u * args.units.blocks : unit_beside + (u - rounds);
    return number * args.units.tiles_of_unit.divisor;
  }
  __device__ __forceinline__ core::Tile tile_of(uint32_t t) const {
    const uint32_t column = args.m_blocks_divisor.quotient(t);
    core::Tile where;
    where.batch = static_cast<int32_t>(args.dense_schedule.nheads.quotient(column));
    where.head = static_cast<int32_t>(column) - where.batch * args.nheads;
    where.m_block = static_cast<int32_t>(t - column * args.num_m_blocks);
    return where;
  }
};

// Four warps: one loads K and V, one for each stream finds its tiles and loads Q. The first loads come before the
// thread block meets, in code near the kernel's entry: it comes from memory.
template <class Traits>
struct ResidentProducer {
  using SharedStorage = typename Traits::SharedStorage;
  using Job = typename Traits::Job;

  const FwdArgs &args;
  SharedStorage &smem;
  const int stream;  // -1: K and V
  const ResidentTiles<Traits> tiles;
  const TileLoads<Traits> loads;

  __device__ __forceinline__ ResidentProducer(const FwdArgs &a, SharedStorage &s, int warp)
      : args(a), smem(s), stream(warp - 1), tiles(a), loads{a, s} {}

  __device__ __forceinline__ void start() const {
    if (stream < 0) {
      load_keys(0, RingState<Traits::kStages>::producer());
    } else if (stream < tiles.end) {
      load_queries(stream, RingState<1>::producer());
    }
  }

  // All others.
  __device__ __forceinline__ void run() const {
    if (stream < 0) {
      RingState<Traits::kStages> state = RingState<Traits::kStages>::producer();
      const uint32_t end = tiles.unit(tiles.end);
      for (uint32_t unit = 1; unit < end; ++unit) {
        state.advance();
        load_keys(unit, state);
      }
    } else {
      RingState<1> state = RingState<1>::producer();
      for (uint32_t i = stream + Traits::kStreams; i < tiles.end; i += Traits::kStreams) {
        state.advance();
        load_queries(i, state);
      }
    }
  }

 private:
  __device__ __forceinline__ void load_keys(uint32_t unit, RingState<Traits::kStages> state) const {
    const core::Tile where = tiles.first_of_unit(unit);
    Job job;
    loads.set_keys(loads.keys(where.batch), where.head, &job);
    loads.load_keys(loads.load_of_k(job, 0, state));
    loads.load_values(loads.load_of_v(job, 0, state));
  }

  __device__ __forceinline__ void load_queries(uint32_t i, RingState<1> state) const {
    uint64_t *const full = &smem.barriers.q_full[stream];
    uint64_t *const empty = &smem.barriers.q_empty[stream];
    WorkTile tile;
    Job job;
    loads.describe(tiles.tile(i), &tile, &job);
    ptx::mbarrier_wait(empty, state.parity());
    if (threadIdx.x % 32 == 0) smem.tile[stream][state.step % Traits::kTileSlots] = tile;
    __syncwarp();
    if (tile.range.count() == 0) {
      if (ptx::elect_one()) ptx::mbarrier_arrive(full);
      return;
    }
    BoxLoad<Traits> load = loads.load_of_q(job, state);
    load.to = smem.q[stream];
    load.full = full;
    load.empty = empty;
    load.hint = ptx::L2Hint::kNormal;  // 1.5 % faster than "evict first" where all is read once
    loads.load(load);
  }
};

template <class Traits>
struct ResidentConsumer {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kOutputs = Traits::kHeadDimV / 2;

  const FwdArgs &args;
  SharedStorage &smem;
  const int stream;
  const uint32_t q, k_low, v_low;  // low words of descriptors, of K and V in the first stage
  RingState<Traits::kStages> kv_state = RingState<Traits::kStages>::consumer();

  __device__ __forceinline__ ResidentConsumer(const FwdArgs &a, SharedStorage &s, int st)
      : args(a),
        smem(s),
        stream(st),
        q(ptx::uniform(Descriptor::k_major(ptx::shared_address(s.q[st])))),
        k_low(ptx::uniform(Descriptor::k_major(ptx::shared_address(s.k)))),
        v_low(ptx::uniform(Descriptor::template mn_major<Traits::kBlockN>(ptx::shared_address(s.v)))) {}

  __device__ __forceinline__ void run() {
    const ResidentTiles<Traits> tiles(args);
    uint32_t unit = 0;
    uint32_t of_tile = tiles.unit(stream);
    RingState<1> q_state = RingState<1>::consumer();
    for (uint32_t i = stream; ptx::uniform(i < tiles.end); i += Traits::kStreams, q_state.advance()) {
      for (; ptx::uniform(unit < of_tile); ++unit) release_unit();  // units without a tile of this stream
      of_tile = tiles.unit(i + Traits::kStreams);
      const bool last = ptx::uniform(of_tile != unit);
      ptx::mbarrier_wait(&smem.barriers.q_full[stream], q_state.parity());
      compute(smem.tile[stream][(q_state.step + 1) % Traits::kTileSlots], last);
      if (last) ++unit;
    }
    for (; ptx::uniform(unit < of_tile); ++unit) release_unit();
    ptx::tma_store_wait_read();
  }

 private:
  // Gives K and V back unread. They must have come: the buffers are filled again when all have given them back.
  __device__ __forceinline__ void release_unit() {
    const uint32_t i = kv_state.index();
    ptx::mbarrier_wait(&smem.barriers.k_full[i], kv_state.parity());
    ptx::mbarrier_wait(&smem.barriers.v_full[i], kv_state.parity());
    arrive(&smem.barriers.k_empty[i]);
    arrive(&smem.barriers.v_empty[i]);
    kv_state.advance();
  }

  static __device__ __forceinline__ void arrive(uint64_t *barrier) {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
  }

  // last: of the unit, for this stream.
  __device__ __forceinline__ void compute(const WorkTile &tile, bool last) {
    const Epilogue<Traits> epilogue(args, 0);
    if (ptx::uniform(tile.range.count() == 0)) {
      ptx::mbarrier_arrive(&smem.barriers.q_empty[stream]);
      epilogue.store_empty(tile);
      if (last) release_unit();
      return;
    }
    const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
    const auto row_end =
        static_cast<int32_t>(min(int64_t{tile.seqlen_q}, Traits::warpgroup_row(tile, 0) + Traits::kBlockM));
    float o[kOutputs];
    RowResults results;
    if (ptx::uniform(mask.key_end(row_end - 1) <= Traits::kBlockN / 2)) {
      results = attend<Traits::kBlockN / 2>(tile, mask, last, o);
    } else {
      results = attend<Traits::kBlockN>(tile, mask, last, o);
    }
    if (last) {
      arrive(&smem.barriers.v_empty[kv_state.index()]);
      kv_state.advance();
    }
    ptx::bar_sync(NamedBarriers<Traits>::turn(0), 128);  // the output of the tile before has left its place
    epilogue.store(tile, results, o, smem.out[stream]);
  }

  // To the first kKeys keys; no row sees more.
  template <int kKeys>
  __device__ __forceinline__ RowResults attend(const WorkTile &tile, const core::Mask &mask, bool last,
                                               float (&o)[kOutputs]) {
    const uint32_t i = kv_state.index();
    float s[kKeys / 2];
    ptx::mbarrier_wait(&smem.barriers.k_full[i], kv_state.parity());
    gemm_ss<Element, kKeys, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, Traits::kBlockN>(
        q, k_low + i * (Traits::kKBytes / 16), s);
    wgmma_wait_group<0>();
    fence_accumulators(s);
    ptx::mbarrier_arrive(&smem.barriers.q_empty[stream]);  // every thread, as all of them have read the tile before
    if (last) arrive(&smem.barriers.k_empty[i]);

    const int64_t first_row = Traits::warp_row(tile, 0);
    if constexpr (Traits::kScoreMod) {
      RowScores(args, tile, first_row, alibi_slope(args, tile)).modify(s, args, 0);
    }
    mask_scores(s, core::BlockMask::make(mask, first_row, 0), args.window.left >= 0);
    OnlineSoftmax softmax(Traits::kScoreMod ? 1.f : args.scale_log2);
    float correction[2];
    softmax.update(s, correction);
    uint32_t p[kKeys / 4];
    pack_probabilities<Element>(s, p);

#pragma unroll
    for (int j = 0; j < kOutputs; ++j) o[j] = 0.f;
    ptx::mbarrier_wait(&smem.barriers.v_full[i], kv_state.parity());
    gemm_rs<Element, Traits::kHeadDimV, kKeys, Traits::kSwizzleBytes>(p, v_low + i * (Traits::kVBytes / 16), o);
    const RowResults results = Epilogue<Traits>(args, 0).finish_rows(tile, softmax);
    if (ptx::elect_one()) ptx::tma_store_wait_read();
    wgmma_wait_group<0>();
    fence_accumulators(o);
    return results;
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) resident_fwd_kernel_sm90(const __grid_constant__ FwdArgs args) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto &smem = *reinterpret_cast<typename Traits::SharedStorage *>(shared_memory);
  const int warpgroup = ptx::uniform(threadIdx.x / 128);
  const int warp = ptx::uniform(threadIdx.x / 32);
  if (warp == 4 && ptx::elect_one()) prefetch_tensormaps(args);
  const ResidentProducer<Traits> producer(args, smem, warp);
  if (warpgroup == 0) {
    if (warp == 0 && ptx::elect_one()) {
      // Q and the tile are given back by all threads of a stream, K and V by a lane of every warp of all streams.
#pragma unroll
      for (int i = 0; i < Traits::kBarriers; ++i) {
        const int readers = i < Traits::kFullBarriers + Traits::kStreams ? 128 : 4 * Traits::kStreams;
        ptx::mbarrier_init(&smem.barriers.q_full[0] + i, i < Traits::kFullBarriers ? 1 : readers);
      }
      ptx::fence_mbarrier_init();
    }
    __syncwarp();
    ptx::bar_sync(2 * Traits::kWarpgroups, 128);  // behind those of NamedBarriers
    producer.start();
  }
  __syncthreads();
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<Traits::kProducerRegisters>();
    producer.run();
  } else {
    ptx::setmaxnreg_inc<Traits::kConsumerRegisters>();
    ResidentConsumer<Traits>(args, smem, warpgroup - 1).run();
  }
}

}  // namespace flash3::device
