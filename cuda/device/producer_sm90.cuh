// The producer warp: takes tiles from the scheduler, tells the consumers, and keeps Q, K and V coming through TMA.
#pragma once

#include <cstdint>

#include "core/tile_scheduler.h"
#include "device/cluster.cuh"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_finder.cuh"
#include "device/tile_loads.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct Producer : TileFinder<Traits> {
  using Finder = TileFinder<Traits>;
  using Loads = TileLoads<Traits>;
  using Finder::args;
  using Finder::is_leader;
  using Finder::smem;
  using typename Loads::Job;
  using typename Loads::Load;
  using SharedStorage = typename Traits::SharedStorage;

  RingState<Traits::kQStages> q_state = RingState<Traits::kQStages>::producer();
  RingState<Traits::kStages> k_state = RingState<Traits::kStages>::producer();
  RingState<Traits::kStages> v_state = RingState<Traits::kStages>::producer();
  RingState<1> out_state = RingState<1>::producer();
  // Whether V, and what else run() loads, waits until the first K of a call has come: all multiprocessors load at once
  // then, from a memory that has nothing else to do, and what is needed first should come first. As measured: packed
  // calls and pairs lose by it. (A first tile of one key block would have its V sooner without, but to tell it apart
  // here costs all other calls more than it gains.)
  static constexpr bool kLoadsVLater = Traits::kOverlapsTiles && !Traits::kVarlen && !Traits::kPaired;
  // Whether the warps of a block meet in the code of their roles (ptx::meet). As measured: caches and d 96 gain nothing
  // by it, and lose up to 1 % where sequences are long. Modified scores at d 64 have no register left for it.
  static constexpr bool kMeetsInRoles =
      !Traits::kCache && Traits::kHeadDim != 96 && !(Traits::kScoreMod && Traits::kHeadDim == 64);
  // What start() has loaded ahead of its turn: Q where there is one buffer for it, and V.
  bool has_q = false, has_v = false;

  __device__ __forceinline__ Producer(const FwdArgs &a, SharedStorage &s, int stream) : Finder(a, s, stream) {
    if constexpr (Traits::kScouts) this->tile_state = RingState<Traits::kTileSlots>::consumer();
  }

  // Run by one whole warp: all lanes look for tiles, one issues the loads. start() returns the first tile, with its
  // first loads on their way, and run() goes on from there.
  //
  // start() runs before the thread block meets, and initialises its barriers. What comes before the loads is kept
  // short: when a kernel starts, its code comes from memory.
  __device__ __forceinline__ Job start() {
    init_barriers<Traits, Traits::kPaired ? InitBarriers::kAll : InitBarriers::kFirst>(smem);
    if constexpr (Traits::kPaired) ptx::cluster_arrive_relaxed();
    WorkTile tile = {};
    Job job;
    this->prepare();
    const int64_t t = this->look(this->first(), &tile, &job);
    const bool has_blocks = job.range.count() > 0;
    if constexpr (Traits::kPaired) {
      if (has_blocks) Loads::template load<true>(next_q(job));
      __syncwarp();
      ptx::cluster_wait();  // the other block's barriers are there, too
      if (has_blocks) {
        Loads::template load_keys<true>(next_k(job, job.range.end - 1));
        Loads::template load_values<true>(next_v(job, job.range.end - 1));
      }
    } else {
      if (has_blocks) load_fresh(job);
      init_barriers<Traits, InitBarriers::kOthers>(smem);
    }
    has_q = Traits::kQStages == 1 && has_blocks;
    has_v = has_blocks && !kLoadsVLater;
    if (is_leader()) {
      this->write(0, tile);
      if constexpr (Traits::kScouts) smem.job[0].number = static_cast<int32_t>(t);
      ptx::mbarrier_arrive(&smem.barriers.tile_full[0]);
    }
    if constexpr (Traits::kScouts) ptx::mbarrier_arrive(&smem.barriers.tile_empty[0]);
    this->tile_state.advance();
    return job;
  }

  // With kMeetsInRoles also run by warps that are no producers and no scouts, whose job is not valid: they wait for the
  // producer in its code.
  __device__ __forceinline__ void run(Job job) {
    if constexpr (kMeetsInRoles) {
      ptx::meet(Traits::kThreads);
      if (!job.valid) return;
    }
    if (kLoadsVLater && job.range.count() > 0) ptx::mbarrier_wait(&smem.barriers.k_full[0], 0);
    while (job.valid) {
      const int64_t t = load_all_but_last(job);
      // The next tile is looked for, and its first loads issued, before the last load of this one, which waits longest.
      const Job next = next_job(t);
      if (next.range.count() > 0) load_first(next);
      if (job.range.count() > 0) load_v(job, job.range.begin);
      job = next;
      if (!Traits::kScouts && !job.valid && is_leader()) this->publish(WorkTile{});  // valid = 0: no more
    }
    if constexpr (Traits::kPaired) {
      if (is_leader()) drain();
    }
  }

  // The first one from number t on, or what the scout says.
  __device__ __forceinline__ Job next_job([[maybe_unused]] int64_t t) {
    if constexpr (!Traits::kScouts) return this->find(t);
    const uint32_t i = this->tile_state.index();
    ptx::mbarrier_wait(&smem.barriers.tile_full[i], this->tile_state.parity());
    Job job = smem.job[i];
    job.valid = ptx::uniform(smem.tile[i].valid != 0);
    job.range = {ptx::uniform(job.range.begin), ptx::uniform(job.range.end), 0, 0};
    ptx::mbarrier_arrive(&smem.barriers.tile_empty[i]);
    this->tile_state.advance();
    return job;
  }

  __device__ __forceinline__ Load next_q(const Job &job) { return taken(this->load_of_q(job, q_state), q_state); }
  __device__ __forceinline__ Load next_k(const Job &job, int32_t n) {
    return taken(this->load_of_k(job, n, k_state), k_state);
  }
  __device__ __forceinline__ Load next_v(const Job &job, int32_t n) {
    return taken(this->load_of_v(job, n, v_state), v_state);
  }
  template <class State>
  static __device__ __forceinline__ Load taken(const Load &load, State &state) {
    state.advance();
    return load;
  }

  // Of a tile that has key blocks: the first block of K, and Q if there is a buffer for it.
  __device__ __forceinline__ void load_first(const Job &job) {
    if constexpr (Traits::kQStages > 1) Loads::load(next_q(job));
    Loads::load_keys(next_k(job, job.range.end - 1));
  }

  // The first tile's. In a loop, so that its code is waited for once.
  __device__ __forceinline__ void load_fresh(const Job &job) {
    const Load q = next_q(job);
    const Load k = next_k(job, job.range.end - 1);
    if constexpr (kLoadsVLater) {
#pragma unroll 1
      for (int i = 0; i < 2; ++i) load_one_of(i, q, k, k);
    } else {
      constexpr bool kAlike = Traits::kHeadDim == Traits::kHeadDimV;
      const Load v = next_v(job, job.range.end - 1);
#pragma unroll 1
      for (int i = 0; i < (kAlike ? 3 : 2); ++i) load_one_of(i, q, k, v);
      if (!kAlike) Loads::template load_values<true>(v);
    }
  }

  // Loads the other key blocks of a tile, all but its last V, and K one block ahead of V, as the consumers take them.
  // Returns where to go on.
  __device__ __forceinline__ int64_t load_all_but_last(const Job &job) {
    int32_t ticket = 0;
    // How many blocks before the last one the next tile is asked for: a scout needs some time.
    constexpr int32_t kAhead = Traits::kScouts ? 3 : 0;
    if (job.valid && job.range.count() <= 1 + kAhead) ticket = ask_for_next();
    if (Traits::kQStages == 1 && job.range.count() > 0 && !has_q) Loads::load(next_q(job));
    has_q = false;
#pragma unroll 1
    for (int32_t n = job.range.end - 2; n >= job.range.begin; --n) {
      if (n == job.range.begin + kAhead) ticket = ask_for_next();
      Loads::load_keys(next_k(job, n));
      load_v(job, n + 1);
    }
    if constexpr (Traits::kScouts) return 0;
    return this->successor(ticket);
  }

  __device__ __forceinline__ int32_t ask_for_next() {
    if constexpr (!Traits::kScouts) return this->claim();
    if (is_leader()) ptx::mbarrier_arrive(&smem.barriers.tile_wanted[this->tile_state.step % Traits::kAsks]);
    return 0;
  }

  __device__ __forceinline__ void load_v(const Job &job, int32_t n) {
    if (!Traits::kOverlapsTiles && n == job.range.end - 1) {
      ptx::mbarrier_wait(&smem.barriers.out_empty,
                         out_state.parity());  // where the output of the tile before has been staged
      out_state.advance();
    }
    if (!has_v) Loads::load_values(next_v(job, n));
    has_v = false;
  }

  // One of three. Field by field, or the compiler keeps all of them in local memory.
  static __device__ __forceinline__ void load_one_of(int i, const Load &a, const Load &b, const Load &c) {
    const auto choose = [i](auto x, auto y, auto z) { return i == 0 ? x : i == 1 ? y : z; };
    Loads::template load<true>({choose(a.map, b.map, c.map),
                                choose(a.zero_map, b.zero_map, c.zero_map),
                                choose(a.head_dim, b.head_dim, c.head_dim),
                                choose(a.to, b.to, c.to),
                                choose(a.full, b.full, c.full),
                                choose(a.empty, b.empty, c.empty),
                                choose(a.parity, b.parity, c.parity),
                                choose(a.rows, b.rows, c.rows),
                                choose(a.hint, b.hint, c.hint),
                                {0, choose(a.at.row, b.at.row, c.at.row), choose(a.at.end, b.at.end, c.at.end),
                                 choose(a.at.head, b.at.head, c.at.head), choose(a.at.batch, b.at.batch, c.at.batch)}});
  }

  // Waits for all arrivals on the buffers of K and V, those of the other block among them: they must not come when this
  // block and its memory are gone.
  __device__ __forceinline__ void drain() {
#pragma unroll 1
    for (int i = 0; i < Traits::kStages; ++i) {
      ptx::mbarrier_wait(&smem.barriers.k_empty[k_state.index()], k_state.parity());
      ptx::mbarrier_wait(&smem.barriers.v_empty[v_state.index()], v_state.parity());
      k_state.advance();
      v_state.advance();
    }
  }
};

}  // namespace flash3::device
