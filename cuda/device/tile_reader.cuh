// What the producer of a stream, or its scout, publishes of tiles.
#pragma once

#include <cstdint>

#include "core/block_range.h"
#include "device/ptx.cuh"
#include "device/tile_loads.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// The tiles that the producer publishes, one after the other.
template <class Traits>
struct TileReader {
  typename Traits::SharedStorage &smem;
  RingState<Traits::kTileSlots> state = RingState<Traits::kTileSlots>::consumer();

  __device__ __forceinline__ explicit TileReader(typename Traits::SharedStorage &s) : smem(s) { wait(); }

  __device__ __forceinline__ const WorkTile &tile() const { return smem.tile[state.index()]; }
  __device__ __forceinline__ bool valid() const { return ptx::uniform(tile().valid != 0); }
  // Whether there is a tile, and one that has key blocks: where there is none its range is empty.
  __device__ __forceinline__ bool has_blocks() const { return ptx::uniform(tile().range.begin < tile().range.end); }
  __device__ __forceinline__ core::BlockRange range() const {
    const core::BlockRange &r = tile().range;
    return {ptx::uniform(r.begin), ptx::uniform(r.end), ptx::uniform(r.full_begin), ptx::uniform(r.full_end)};
  }
  // Blocks at the end that a warpgroup leaves out since none of its rows sees them.
  __device__ __forceinline__ int32_t hidden_blocks(int warpgroup) const {
    if constexpr (!Traits::kTrims) return 0;
    const int32_t seen_end = ptx::uniform(tile().mask.edges.end) + 64 * warpgroup + 63;
    const core::BlockRange all = {ptx::uniform(tile().range.begin), ptx::uniform(tile().range.end), 0, 0};
    return core::hidden_blocks(all, seen_end, Traits::kBlockN, Traits::kConfig.most_hidden());
  }
  __device__ __forceinline__ bool is_there() const {
    return ptx::mbarrier_test(&smem.barriers.tile_full[state.index()], state.parity());
  }
  __device__ __forceinline__ void wait() const {
    ptx::mbarrier_wait(&smem.barriers.tile_full[state.index()], state.parity());
  }
  // Gives the slot back, as every thread of every reader has to, and goes on to the next one.
  __device__ __forceinline__ void advance() {
    ptx::mbarrier_arrive(&smem.barriers.tile_empty[state.index()]);
    state.advance();
  }
};

}  // namespace flash3::device
