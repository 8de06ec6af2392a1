// The barriers of the forward kernel's streams, and places in the rings of buffers that they guard.
#pragma once

#include <cstdint>

#include "device/cluster.cuh"
#include "device/ptx.cuh"

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

// By one whole warp, of which one lane does it: to fixed addresses, so that it is one instruction a barrier. Those that
// the first loads of a block need are there before the others, if the caller wants them so.
enum class InitBarriers { kAll, kFirst, kOthers };

// key_arrivals: of those that load a block of K or V. followers: threads of the producer's warpgroup that read the
// tiles, too.
template <class Traits, InitBarriers kWhich = InitBarriers::kAll>
__device__ __forceinline__ void init_barriers(typename Traits::SharedStorage &smem, int key_arrivals = 1,
                                              int followers = Traits::kFollowers) {
  constexpr int kFirstK = Traits::kQStages;  // among either kind
  constexpr int kFirstTile = kFirstK + 2 * Traits::kStages;
  if (ptx::elect_one()) {
#pragma unroll
    for (int i = 0; i < Traits::kFullBarriers; ++i) {
      const bool of_keys = i >= kFirstK && i < kFirstTile;
      const bool is_first = i == 0 || i == kFirstK || i == kFirstK + Traits::kStages;  // of Q, K and V
      if (kWhich != InitBarriers::kAll && is_first != (kWhich == InitBarriers::kFirst)) continue;
      ptx::mbarrier_init(&smem.barriers.q_full[0] + i, of_keys ? key_arrivals : 1);
    }
#pragma unroll
    for (int i = 0; i < Traits::kEmptyBarriers; ++i) {
      if (kWhich == InitBarriers::kFirst) continue;
      const bool of_keys = i >= kFirstK && i < kFirstTile;
      const bool of_tiles = i >= kFirstTile && i < kFirstTile + Traits::kTileSlots;
      const bool of_out = i == kFirstTile + Traits::kTileSlots;
      const int readers = of_keys || of_out ? Traits::kReaders : 1;
      ptx::mbarrier_init(&smem.barriers.q_empty[0] + i,
                         Traits::kConsumers * readers * (of_tiles ? 128 : 4) + (of_tiles ? followers : 0));
    }
    if constexpr (Traits::kScouts && kWhich != InitBarriers::kFirst) {
#pragma unroll
      for (int i = 0; i < Traits::kAsks; ++i) ptx::mbarrier_init(&smem.barriers.tile_wanted[i], 1);
    }
    if constexpr (Traits::kStores && kWhich != InitBarriers::kFirst) {
#pragma unroll
      for (int i = 0; i < Traits::kConsumers; ++i) {
        ptx::mbarrier_init(&smem.barriers.staged[i], 128);
        ptx::mbarrier_init(&smem.barriers.stored[i], 32);
      }
    }
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
}

// Whoever loads into a buffer of a pair must know of both of them that they have been read.
template <class Traits>
__device__ __forceinline__ void arrive_at_readers(uint64_t *bar) {
  ptx::mbarrier_arrive(bar);
  if constexpr (Traits::kPaired) {
    ptx::mbarrier_arrive_cluster(ptx::mapa(ptx::shared_address(bar), ptx::cluster_rank() ^ 1));
  }
}

}  // namespace flash3::device
