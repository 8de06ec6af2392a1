// The producer warps of the kernel for few keys: one finds the units of a thread block and loads K and V, one for each
// stream loads Q of its tiles.
#pragma once

#include <cstdint>

#include "device/barriers.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/resident_traits.cuh"
#include "device/tile_loads.cuh"

namespace flash3::device {

// The units of a thread block, one after the other. The first one follows from the block alone.
template <class Traits>
struct UnitFinder {
  const TileLoads<Traits> loads;
  const FwdArgs &args = loads.args;
  // Where lengths come from device memory the number of the next unit, else how many tiles have been handed out.
  uint32_t at = Traits::kVarlen ? blockIdx.x : 0;
  int32_t ticket = 0;

  // Some time before next(), where sequences are different and every block has many units.
  __device__ __forceinline__ void draw() {
    if (!Traits::kVarlen || args.tile_counter == nullptr || threadIdx.x % 32 != 0) return;
    ptx::wait_for_previous_kernel();  // until then the counter is not zero
    ticket = atomicAdd(args.tile_counter, 1);
  }

  __device__ __forceinline__ Unit next() {
    if constexpr (Traits::kVarlen) {
      at = args.tile_counter == nullptr ? at + gridDim.x : gridDim.x + __shfl_sync(0xffffffffu, ticket, 0);
    }
    return here();
  }

  __device__ __forceinline__ Unit here() {
    Unit unit;
    if constexpr (Traits::kVarlen) {
      const core::PackedUnits &units = args.packed_units;
      if (at >= units.count) return unit;
      const auto batch = static_cast<int32_t>(units.of_sequence.quotient(at));
      const auto part = static_cast<int32_t>(at - batch * units.of_sequence.divisor);
      unit = of_sequence(batch, part * units.heads);
      unit.first = 0;
      unit.tiles = unit.m_blocks * units.heads;
      if (unit.tiles == 0) unit.key_blocks = 0;
    } else {
      if (at >= args.units.count(blockIdx.x)) return unit;
      const core::UnitSchedule::Run run = args.units.run(blockIdx.x, at);
      at += run.count;
      const uint32_t column = run.unit * args.group;
      const auto batch = static_cast<int32_t>(args.dense_schedule.nheads.quotient(column));
      unit = of_sequence(batch, static_cast<int32_t>(column) - batch * args.nheads);
      unit.first = static_cast<int32_t>(run.first);
      unit.tiles = static_cast<int32_t>(run.count);
    }
    unit.valid = true;
    return unit;
  }

 private:
  __device__ __forceinline__ Unit of_sequence(int32_t batch, int32_t head) const {
    Unit unit;
    unit.q = TileLoads<Traits>::span(args.q_side, batch);
    const auto keys = loads.keys(batch);
    unit.k_start = keys.start;
    unit.k_len = keys.len;
    unit.k_entry = keys.entry;
    unit.batch = batch;
    unit.head = head;
    unit.m_blocks = core::ceil_div(unit.q.len, Traits::kBlockM);
    unit.key_blocks = core::ceil_div(keys.len, Traits::kBlockN);
    return unit;
  }
};

// Where the keys of a unit do not fit, kStreams tiles at a time share what is loaded of them, and all of it is loaded
// again for the next ones: right, and slow. The host chooses this kernel where the caller says that they fit.
template <class Traits>
__device__ __forceinline__ bool fits(const Unit &unit) {
  return !Traits::kVarlen || unit.key_blocks <= Traits::kKeptBlocks;
}
template <class Traits>
__device__ __forceinline__ int32_t passes_of(const Unit &unit) {
  return fits<Traits>(unit) ? 1 : core::ceil_div(unit.tiles, Traits::kStreams);
}

// Each of these is run by one whole warp. The first unit is the same for all, and announced to none. start() issues the
// first loads, and run() goes on from there: when a kernel starts, its code comes from memory, and start() is short and
// near the kernel's entry.
template <class Traits>
struct KeyProducer {
  using SharedStorage = typename Traits::SharedStorage;
  using Job = typename Traits::Job;

  SharedStorage &smem;
  UnitFinder<Traits> finder;
  Unit unit;
  RingState<Traits::kUnitSlots> slot = RingState<Traits::kUnitSlots>::producer();
  RingState<Traits::kStages> state = RingState<Traits::kStages>::producer();

  __device__ __forceinline__ KeyProducer(const FwdArgs &a, SharedStorage &s) : smem(s), finder{{a, s}} {}

  __device__ __forceinline__ void start() {
    unit = finder.here();
    if (ptx::uniform(unit.valid)) load<true>(0, min(unit.key_blocks, Traits::kKeptBlocks));
  }

  __device__ __forceinline__ void run() {
    int32_t loaded = min(unit.key_blocks, Traits::kKeptBlocks);
#pragma unroll 1
    for (;;) {
      finder.draw();  // also where there is no unit: a grid must not end before the kernel ahead of it
      if (!ptx::uniform(unit.valid)) return;
#pragma unroll 1
      for (int32_t left = passes_of<Traits>(unit); ptx::uniform(left > 0); --left) {
        load(loaded, unit.key_blocks);
        loaded = 0;
      }
      unit = finder.next();
      announce();
    }
  }

 private:
  __device__ __forceinline__ void announce() {
    const uint32_t i = slot.index();
    ptx::mbarrier_wait(&smem.barriers.unit_empty[i], slot.parity());
    if (threadIdx.x % 32 == 0) {
      smem.unit[i] = unit;
      ptx::mbarrier_arrive(&smem.barriers.unit_full[i]);  // release: orders the stores before it
    }
    __syncwarp();
    slot.advance();
  }

  // Key blocks [begin, end) of the unit. kFresh: nothing has been in the buffers.
  template <bool kFresh = false>
  __device__ __forceinline__ void load(int32_t begin, int32_t end) {
    const TileLoads<Traits> &loads = finder.loads;
    Job job;
    loads.set_keys({unit.k_start, unit.k_len, unit.k_entry}, unit.head, &job);
#pragma unroll 1
    for (int32_t n = begin; ptx::uniform(n < end); ++n) {
      loads.template load_keys<kFresh>(loads.load_of_k(job, n, state));
      loads.template load_values<kFresh>(loads.load_of_v(job, n, state));
      state.advance();
    }
  }
};

template <class Traits>
struct QueryProducer {
  using SharedStorage = typename Traits::SharedStorage;
  using Job = typename Traits::Job;

  const FwdArgs &args;
  SharedStorage &smem;
  const int stream;
  const TileLoads<Traits> loads;
  RingState<1> state = RingState<1>::producer();
  Unit unit;
  int32_t t;            // this stream's next tile, among those of the unit
  int32_t own = 0;      // tiles of the unit that it has had
  int32_t skipped = 0;  // see ResidentTile

  __device__ __forceinline__ QueryProducer(const FwdArgs &a, SharedStorage &s, int st)
      : args(a), smem(s), stream(st), loads{a, s}, t(st) {}

  __device__ __forceinline__ void start() {
    unit = UnitFinder<Traits>{loads}.here();
    if (ptx::uniform(unit.valid && t < unit.tiles)) hand_over<true>();
  }

  // Tiles are numbered through all units of the thread block: a stream has every kStreams-th.
  __device__ __forceinline__ void run() {
    RingState<Traits::kUnitSlots> slot = RingState<Traits::kUnitSlots>::consumer();
#pragma unroll 1
    while (ptx::uniform(unit.valid)) {
#pragma unroll 1
      while (ptx::uniform(t < unit.tiles)) hand_over();
      t -= unit.tiles;
      if (own < passes_of<Traits>(unit)) skipped += unit.key_blocks;
      own = 0;
      // The next unit is announced when all keys of this one are on their way. If they do not fit that needs what this
      // stream has to give back, so that it must not wait for its next tile.
      if (ptx::uniform(skipped > 0) && !fits<Traits>(unit)) hand_over_nothing();
      const uint32_t i = slot.index();
      ptx::mbarrier_wait(&smem.barriers.unit_full[i], slot.parity());
      unit = smem.unit[i];
      ptx::mbarrier_arrive(&smem.barriers.unit_empty[i]);
      slot.advance();
    }
    ResidentTile end;
    end.valid = 0;
    hand_over_without_q(end);
  }

 private:
  // Into the stream's slot that is free, once its Q is: both are given back at once. With what is to be given back
  // before it.
  template <bool kFresh = false>
  __device__ __forceinline__ void write(ResidentTile &tile) {
    tile.skipped = skipped;
    skipped = 0;
    if constexpr (!kFresh) ptx::mbarrier_wait(&smem.barriers.q_empty[stream], state.parity());
    if (threadIdx.x % 32 == 0) smem.tile[stream][state.step % Traits::kTileSlots] = tile;
    __syncwarp();
  }

  __device__ __forceinline__ void announce_without_q() const {
    if (ptx::elect_one()) ptx::mbarrier_arrive(&smem.barriers.q_full[stream]);
  }
  __device__ __forceinline__ void hand_over_without_q(ResidentTile &tile) {
    write(tile);
    announce_without_q();
    state.advance();
  }
  // A tile without rows.
  __device__ __forceinline__ void hand_over_nothing() {
    ResidentTile tile;
    tile.valid = 1;
    tile.range = {0, 0, 0, 0};
    tile.m_block = tile.seqlen_q = tile.key_blocks = 0;
    tile.last = false;
    hand_over_without_q(tile);
  }

  // Tile t and its Q.
  template <bool kFresh = false>
  __device__ __forceinline__ void hand_over() {
    const uint32_t of_unit = unit.first + t;
    const uint32_t head = Traits::kVarlen ? of_unit / static_cast<uint32_t>(unit.m_blocks)  // else a constant
                                          : args.m_blocks_divisor.quotient(of_unit);
    core::Tile where;
    where.batch = unit.batch;
    where.head = unit.head + static_cast<int32_t>(head);
    where.m_block = static_cast<int32_t>(of_unit - head * unit.m_blocks);
    ResidentTile tile;
    Job job;
    loads.describe(where, unit.q, {unit.k_start, unit.k_len, unit.k_entry}, &tile, &job);
    if (fits<Traits>(unit)) tile.range.begin = 0;  // also keys that a window hides are multiplied
    tile.key_blocks = unit.key_blocks;
    tile.last = !fits<Traits>(unit) || t + Traits::kStreams >= unit.tiles;
    t += Traits::kStreams;
    ++own;
    write<kFresh>(tile);
    if (ptx::uniform(tile.range.end == 0)) {
      announce_without_q();
    } else {
      BoxLoad<Traits> load = loads.load_of_q(job, state);
      load.to = smem.q[stream];
      load.full = &smem.barriers.q_full[stream];
      load.empty = &smem.barriers.q_empty[stream];
      load.hint = ptx::L2Hint::kNormal;  // 1.5 % faster than "evict first" where all is read once
      loads.template load<kFresh>(load);
    }
    state.advance();
  }
};

}  // namespace flash3::device
