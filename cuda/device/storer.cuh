// A warp that stores what the consumers have staged: to wait for all warps of a warpgroup, and to issue a store, takes
// a consumer some hundred clocks in which it could be at the next tile.
#pragma once

#include <cstdint>

#include "device/barriers.cuh"
#include "device/epilogue_sm90.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_reader.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// Run by one whole warp of each stream.
template <class Traits>
struct Storer {
  using SharedStorage = typename Traits::SharedStorage;

  const FwdArgs &args;
  SharedStorage &smem;

  __device__ __forceinline__ Storer(const FwdArgs &a, SharedStorage &s) : args(a), smem(s) {}

  __device__ __forceinline__ void run() const {
    RingState<1> staged = RingState<1>::consumer();
    TileReader<Traits> reader(smem);
    while (reader.valid()) {
      if (reader.has_blocks()) {  // else the consumers store zeros
#pragma unroll 1
        for (int wg = 0; wg < Traits::kConsumers; ++wg) {
          ptx::mbarrier_wait(&smem.barriers.staged[wg], staged.parity());
          store(reader.tile(), wg);
        }
        finish();
        staged.advance();
      }
      reader.advance();
      reader.wait();
    }
  }

 private:
  __device__ __forceinline__ void store(const WorkTile &tile, int wg) const {
    const Epilogue<Traits> epilogue(args, wg);
    epilogue.store_boxes(tile, smem.own_out + wg * 64 * Traits::kHeadDimV);
    if constexpr (Traits::kStoresLse) epilogue.store_staged_lse(tile, smem.lse + 64 * wg);
  }

  // Gives everything back once the copy engine has read it.
  __device__ __forceinline__ void finish() const {
    if (ptx::elect_one()) ptx::tma_store_wait_read();
    __syncwarp();
    for (int wg = 0; wg < Traits::kConsumers; ++wg) ptx::mbarrier_arrive(&smem.barriers.stored[wg]);
  }
};

}  // namespace flash3::device
