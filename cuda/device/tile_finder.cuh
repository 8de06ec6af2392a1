// The tiles of a persistent block, one after the other: which they are, and telling those who work on them.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/scan.cuh"
#include "device/tile_loads.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// Used by one whole warp of each stream.
template <class Traits>
struct TileFinder : TileLoads<Traits> {
  using Loads = TileLoads<Traits>;
  using Loads::args;
  using Loads::smem;
  using typename Loads::Job;
  using SharedStorage = typename Traits::SharedStorage;

  const int stream;
  RingState<Traits::kTileSlots> tile_state = RingState<Traits::kTileSlots>::producer();
  int32_t own;  // where tiles, or pairs of them, are shared out beforehand: the last one that has been asked for
  int32_t stride = stride_behind(own);  // from there to the next one, where all streams take turns

  __device__ __forceinline__ TileFinder(const FwdArgs &a, SharedStorage &s, int st)
      : Loads{a, s}, stream(st), own(static_cast<int32_t>(first())) {}

  static __device__ __forceinline__ int32_t all_streams() { return static_cast<int32_t>(gridDim.x) * Traits::kStreams; }
  // Of a tile in the first round.
  static __device__ __forceinline__ int32_t stride_behind(int32_t tile) { return 2 * (all_streams() - tile) - 1; }
  static __device__ __forceinline__ bool is_leader() { return threadIdx.x % 32 == 0; }

  // The number of this stream's first tile.
  __device__ __forceinline__ int64_t first() const {
    return Traits::kPaired ? blockIdx.x / 2 : int64_t{blockIdx.x} + stream * gridDim.x;
  }

  // Draws the ticket for this stream's next tile: not early, since a block that claims work ahead keeps it from others
  // that will be free sooner, but a load or two before it is needed, so that the answer is there. In the leader only.
  __device__ __forceinline__ int32_t claim() {
    if (!is_leader()) return 0;
    if (args.tile_counter == nullptr) {
      if constexpr (Traits::kCache || Traits::kPaired) return INT32_MAX;
      // Shared out, forth and back: the tiles of a column come from the longest one on.
      own += stride;
      stride = 2 * all_streams() - stride;
      return own - all_streams();
    }
    ptx::wait_for_previous_kernel();  // until then the counter is not zero
    return atomicAdd(args.tile_counter, 1);
  }
  // Pairs of tiles take equally long: each has its own from the start, and the blocks of a cluster agree on them.
  __device__ __forceinline__ int64_t successor(int32_t ticket) {
    if constexpr (Traits::kPaired) return own += gridDim.x / 2;
    return int64_t{all_streams()} + __shfl_sync(0xffffffffu, ticket, 0);
  }

  // The first tile from number t on that has rows; where none is left, what was there stays. Returns its number.
  __device__ __forceinline__ int64_t look(int64_t t, WorkTile *tile, Job *job) {
    for (; t < this->num_tiles(); t = successor(claim())) {
      if (this->describe(this->decode(static_cast<int32_t>(t)), tile, job)) break;
    }
    return t;
  }

  // The same, announced; not valid, and nothing announced, where none is left. Its own loop, as through look() the
  // machine code would be another one than was measured.
  __device__ __forceinline__ Job find(int64_t t) {
    for (; t < this->num_tiles(); t = successor(claim())) {
      WorkTile tile;
      Job job;
      if (!this->describe(this->decode(static_cast<int32_t>(t)), &tile, &job)) continue;
      if (is_leader()) publish(tile, job);
      return job;
    }
    return {};
  }

  // When this returns it is known where the tiles of every packed sequence begin.
  __device__ __forceinline__ void prepare() const {
    if (!this->packed_q()) return;
    if constexpr (Traits::kScouts) {
      if (args.first_m_block == nullptr) return add_up();
    }
    ptx::wait_for_previous_kernel();  // first_m_block is its work
  }

  // Into a slot that is free, with its mask. In the leader only.
  __device__ __forceinline__ void write(uint32_t slot, const WorkTile &tile) const {
    smem.tile[slot] = tile;
    const int64_t first_query = TileRows<Traits>{args}.query(Traits::warpgroup_row(tile, 0));
    smem.tile[slot].mask =
        core::TileMask::make({args.window, tile.seqlen_q, tile.seqlen_k}, first_query, tile.range, Traits::kBlockN);
  }

  // In the leader only.
  __device__ __forceinline__ void publish(const WorkTile &tile, const Job &job = {}) {
    const uint32_t i = tile_state.index();
    ptx::mbarrier_wait(&smem.barriers.tile_empty[i], tile_state.parity());
    write(i, tile);
    if constexpr (Traits::kScouts) smem.job[i] = job;
    ptx::mbarrier_arrive(&smem.barriers.tile_full[i]);  // release: orders the stores before it
    tile_state.advance();
  }

 private:
  // Where the tiles of every sequence begin, from the lengths.
  __device__ __forceinline__ void add_up() const {
    const int lane = threadIdx.x % 32;
    int64_t before = 0;
#pragma unroll 1
    for (int32_t base = 0; base <= args.batch; base += 32) {
      const int32_t b = base + lane;
      const int32_t own = b < args.batch ? core::ceil_div(args.q_side.span(b).len, Traits::kBlockM) : 0;
      const int64_t behind = before + inclusive_scan(own);
      if (b <= args.batch) {
        smem.first_m_block[b] = static_cast<int32_t>(min(behind - own, int64_t{args.most_m_blocks}));
      }
      before = __shfl_sync(0xffffffffu, behind, 31);
    }
    __syncwarp();
  }
};

// Finds tiles for a producer, which then need not wait for the lengths of sequences while consumers wait for its loads.
template <class Traits>
struct TileScout : TileFinder<Traits> {
  using TileFinder<Traits>::TileFinder;
  using typename TileFinder<Traits>::Job;

  // From the second tile on: the first one is the producer's.
  __device__ __forceinline__ void run() {
    this->tile_state.advance();
    ptx::mbarrier_wait(&this->smem.barriers.tile_full[0], 0);
    // Read by the lane that writes there again.
    int32_t valid = 0;
    int32_t blocks = 0;
    if (this->is_leader()) {
      valid = this->smem.tile[0].valid;
      blocks = this->smem.tile[0].range.count();
      this->own = this->smem.job[0].number;
      this->stride = this->stride_behind(this->own % this->all_streams());
    }
    if (ptx::uniform(valid) == 0) {
      ptx::wait_for_previous_kernel();  // a grid that draws no ticket must not end before it either
      return;
    }
    // A tile of few blocks is over before the next one has been found: that is looked for one tile earlier.
    constexpr int32_t kFewBlocks = 3;
    blocks = ptx::uniform(blocks);
    Job job;
    for (uint32_t tile = 1;; ++tile) {
      const uint32_t asked_for = tile - (Traits::kAsks > 1 && blocks <= kFewBlocks ? 1 : 0);
      if (asked_for > 0) {
        ptx::mbarrier_wait(&this->smem.barriers.tile_wanted[asked_for % Traits::kAsks],
                           RingState<Traits::kAsks>{asked_for - 1}.parity());
      }
      job = this->find(this->successor(this->claim()));
      if (!job.valid) break;
      blocks = job.range.count();
    }
    if (this->is_leader()) this->publish(WorkTile{});  // valid = 0: no more
  }
};

}  // namespace flash3::device
