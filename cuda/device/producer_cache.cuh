// The producers of a cache, dense or in pages: of the four warps of a warpgroup two load K and two V, so that neither
// waits for a buffer of the other. They set the copy engine to a key block, or to boxes of it that lie in pages; where
// pages are too small for that, they copy rows.
#pragma once

#include <cstdint>

#include "device/cache_keys.cuh"
#include "device/fwd_args.h"
#include "device/producer_sm90.cuh"
#include "device/ptx.cuh"
#include "device/row_copies.cuh"
#include "device/tile_loads.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct CacheProducer : Producer<Traits> {
  using Base = Producer<Traits>;
  using Base::args;
  using Base::smem;
  using Job = typename Traits::Job;
  using SharedStorage = typename Traits::SharedStorage;
  using Ring = RingState<Traits::kStages>;

  const CacheWarp<Traits> self;
  const bool leads;  // the first warp, which finds the tiles and loads Q
  Ring place = Ring::producer();

  __device__ __forceinline__ CacheProducer(const FwdArgs &a, SharedStorage &s, int warp)
      : Base(a, s, 0), self(a, s, warp), leads(warp == 0) {
    if (!leads) this->tile_state = RingState<Traits::kTileSlots>::consumer();
  }

  __device__ __forceinline__ void run() {
    if (self.half() >= args.loading_warps) return;
    if (leads && this->packed_q()) ptx::wait_for_previous_kernel();  // first_m_block is its work
    int64_t t = blockIdx.x;
    bool more;
#pragma unroll 1
    do {
      const Job job = next_job(t);
      const auto num_keys = static_cast<int32_t>(args.k_side.rows) - job.k_row;
      const TileKeys keys = {job.k_end - num_keys, num_keys, job.kv_head, job.batch_k};
      more = ptx::uniform(job.valid);
      int32_t ticket = 0;
      if (job.range.count() == 0) {
        if (leads && more) ticket = this->claim();
      } else if (args.cache_loads == CacheLoads::kRows) {
        ticket = load_blocks(RowCopies<Traits>(self, keys, job.range.end - 1), job);
      } else {
        ticket = load_blocks(BoxLoads<Traits>(self, keys, job.range.end - 1), job);
      }
      if (leads) t = this->successor(ticket);
    } while (more);
  }

 private:
  // All key blocks of a tile, and Q. Returns the first warp's ticket of the next tile.
  template <class Loads>
  __device__ __forceinline__ int32_t load_blocks(Loads loads, const Job &job) {
    int32_t ticket = 0;
    if (Traits::kQStages == 2 && leads) Base::load(this->next_q(job));
#pragma unroll 1
    for (int32_t n = job.range.end - 1; n >= job.range.begin; --n) {
      const bool first = n == job.range.end - 1;
      if (leads && n == job.range.begin) ticket = this->claim();
      if (!Traits::kOverlapsTiles && self.of_v() && first) {
        // Where the output of the tile before has been staged.
        ptx::mbarrier_wait(&smem.barriers.out_empty, this->out_state.parity());
        this->out_state.advance();
      }
      loads.load(n, {ptx::uniform(place.step)});
      if (Traits::kQStages == 1 && leads && first) Base::load(this->next_q(job));
      place.advance();
    }
    return ticket;
  }

  // The next tile, in the first warp the first one from number t on that has rows; not valid where there is none. Read
  // from where the first warp announces it: to keep it in registers meanwhile would take too many.
  __device__ __forceinline__ Job next_job(int64_t t) {
    const uint32_t i = ptx::uniform(this->tile_state.index());
    if (leads) {
      announce(t);
    } else {
      ptx::mbarrier_wait(&smem.barriers.tile_full[i], this->tile_state.parity());
    }
    const WorkTile &tile = smem.tile[i];
    Job job = {};
    job.valid = tile.valid != 0;
    job.range = tile.range;
    if (job.valid) {
      this->set_queries({tile.q_start, tile.seqlen_q}, {tile.m_block, tile.head, tile.batch}, &job);
      this->set_keys(this->keys(tile.batch), tile.head, &job);
    }
    if (!leads) {
      ptx::mbarrier_arrive(&smem.barriers.tile_empty[i]);
      this->tile_state.advance();
    }
    return job;
  }

  __device__ __forceinline__ void announce(int64_t t) {
    WorkTile tile = {};  // valid = 0: no more
    Job unused;
    this->look(t, &tile, &unused);
    if (this->is_leader()) this->publish(tile);
    __syncwarp();
  }
};

}  // namespace flash3::device
