// The consumer warpgroups' main loop of the kernel for wide heads, and the exchange of scores that it lives on.
//
// A cluster of two thread blocks has one tile of query rows. Each of them holds half of the columns of Q, K, V and the
// output, so that the output fits its registers, and computes Q * K^T over its half of the columns. The two add up
// their halves of the scores through distributed shared memory; from there on both have the same scores, the same
// softmax and the same probabilities, and multiply them with their columns of V.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/gmma.cuh"
#include "device/mainloop_sm90.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/tile_loads.cuh"
#include "device/wide_traits.cuh"

namespace flash3::device {

// Between a consumer warpgroup and the one with the same rows in the other block. A thread there has the same places
// of the scores.
template <class Traits>
struct ScoreExchange {
  static constexpr int kScores = Traits::kBlockN / 2;
  static constexpr uint32_t kBytes = kScores * 4 * 128;

  const float4 *from;  // what the other thread has sent
  uint64_t *full, *empty;
  uint32_t to, to_full, to_empty;  // the same in the other block
  uint32_t phase = 0;

  __device__ __forceinline__ ScoreExchange(typename Traits::SharedStorage &smem, int warpgroup)
      : from(&smem.scores[warpgroup][0][threadIdx.x % 128]),
        full(&smem.barriers.scores_full[warpgroup]),
        empty(&smem.barriers.scores_empty[warpgroup]) {
    const uint32_t other = ptx::cluster_rank() ^ 1;
    to = ptx::mapa(ptx::shared_address(from), other);
    to_full = ptx::mapa(ptx::shared_address(full), other);
    to_empty = ptx::mapa(ptx::shared_address(empty), other);
  }

  // The sum of two numbers does not depend on their order: both blocks get the same bits.
  __device__ __forceinline__ void add_up(float (&s)[kScores]) {
#ifdef WV_NOEX
    return;
#endif
    ptx::mbarrier_wait(empty, phase ^ 1);
    if (threadIdx.x % 128 == 0) ptx::mbarrier_arrive_expect_tx(full, kBytes);
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      ptx::st_async_16(to + i * 128 * 16, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3], to_full);
    }
    ptx::mbarrier_wait(full, phase);
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float4 x = from[i * 128];
      s[4 * i] += x.x;
      s[4 * i + 1] += x.y;
      s[4 * i + 2] += x.z;
      s[4 * i + 3] += x.w;
    }
    fence_accumulators(s);
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive_cluster(to_empty);
    phase ^= 1;
  }
};

template <class Traits>
struct WideMainloop {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;            // scores a thread holds
  static constexpr int kOutputs = Traits::kHeadDim / 2;  // outputs a thread holds

  const FwdArgs &args;
  SharedStorage &smem;
  const int warpgroup;  // among the consumers
  // Low words of the descriptors of this warpgroup's rows of Q, and of K and V, each in the first stage.
  const uint32_t q_low, k_low, v_low;
  ScoreExchange<Traits> exchange;
  RingState<Traits::kStages> k_state = RingState<Traits::kStages>::consumer();
  RingState<Traits::kStages> v_state = RingState<Traits::kStages>::consumer();

  __device__ __forceinline__ WideMainloop(const FwdArgs &a, SharedStorage &s, int wg)
      : args(a),
        smem(s),
        warpgroup(wg),
        q_low(ptx::uniform(Descriptor::k_major(place(s.q[0] + wg * 64 * Traits::kBoxCols)))),
        k_low(ptx::uniform(Descriptor::k_major(place(s.k)))),
        v_low(ptx::uniform(Descriptor::template mn_major<kBlockN>(place(s.v)))),
        exchange(s, wg) {}

  // Leaves the last product in flight, which completes `o`. The tile must have a key block.
  __device__ __forceinline__ void run(const WorkTile &tile, const core::BlockRange &range, float (&o)[kOutputs],
                                      OnlineSoftmax &softmax) {
    const float slope = Traits::kScoreMod ? alibi_slope(args, tile) : 0.f;
    float s[kScores];
    uint32_t p[kScores / 2];
    float correction[2];
    // From this block's share of the scores to probabilities.
    const auto to_probabilities = [&](int32_t n) {
      release(smem.barriers.k_empty, k_state);
      exchange.add_up(s);
      const int64_t first_row = Traits::warp_row(tile, warpgroup);
      if constexpr (Traits::kScoreMod) RowScores(args, tile, first_row, slope).modify(s, args, n * kBlockN);
      if (!range.is_full(n)) {
        const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
        mask_scores(s, core::BlockMask::make(mask, first_row, int64_t{n} * kBlockN), args.window.left >= 0);
      }
      softmax.update(s, correction);
    };
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0.f;

    if (warpgroup == Traits::kConsumers - 1) pass_turn();  // the ring of turns starts with the first warpgroup
    ptx::mbarrier_wait(&smem.barriers.q_full[0], 0);
    ptx::mbarrier_wait(&smem.barriers.k_full[0], 0);
    take_turn();
    issue_qk(s);
    pass_turn();
    wgmma_wait_group<0>();
    fence_accumulators(s);
    to_probabilities(range.end - 1);
    pack_probabilities<Element>(s, p);
#pragma unroll 1
    for (int32_t n = range.end - 2; ptx::uniform(n >= range.begin); --n) {
      ptx::mbarrier_wait(&smem.barriers.k_full[k_state.index()], k_state.parity());
      take_turn();
      issue_qk(s);
      ptx::mbarrier_wait(&smem.barriers.v_full[v_state.index()], v_state.parity());
      issue_pv(p, o);
      pass_turn();
      wgmma_wait_group<1>();
      fence_accumulators(s);
      to_probabilities(n);
      wgmma_wait_group<0>();
      fence_accumulators(o);
      release(smem.barriers.v_empty, v_state);
      pack_probabilities<Element>(s, p);
      softmax.rescale(o, correction);
    }
    ptx::mbarrier_wait(&smem.barriers.v_full[v_state.index()], v_state.parity());
    take_turn();
    issue_pv(p, o);
    pass_turn();
  }

  // After run(): the first warpgroup takes the turn that is left over.
  __device__ __forceinline__ void end_turns() const {
    if (warpgroup == 0) take_turn();
  }

  // Where this warpgroup stages its output: in the place of its rows of Q, which nobody else reads.
  __device__ __forceinline__ Element *output_place() const { return smem.q[0] + warpgroup * 64 * Traits::kBoxCols; }

 private:
  // An address inside of the own block: in a cluster the number of the block is part of shared addresses, and a matrix
  // descriptor has no room for it.
  static __device__ __forceinline__ uint32_t place(const void *smem) { return ptx::shared_address(smem) & 0x3ffff; }

  __device__ __forceinline__ void issue_qk(float (&s)[kScores]) const {
    gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN>(
        q_low, ptx::uniform(k_low + k_state.index() * (Traits::kKBytes / 16)), s);
  }

  __device__ __forceinline__ void issue_pv(uint32_t (&p)[kScores / 2], float (&o)[kOutputs]) const {
    gemm_rs<Element, Traits::kHeadDim, kBlockN, Traits::kSwizzleBytes>(
        p, ptx::uniform(v_low + v_state.index() * (Traits::kVBytes / 16)), o);
  }

  // One arrival a warp, once the whole warp has read the buffer.
  template <int kStages>
  __device__ __forceinline__ static void release(uint64_t (&empty)[kStages], RingState<kStages> &state) {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&empty[state.index()]);
    state.advance();
  }

  __device__ __forceinline__ void take_turn() const {
#ifdef WV_NOTURN
    return;
#endif
    ptx::bar_sync(NamedBarriers<Traits>::turn(warpgroup), 256); }
  __device__ __forceinline__ void pass_turn() const {
#ifdef WV_NOTURN
    return;
#endif
    ptx::bar_arrive(NamedBarriers<Traits>::turn((warpgroup + 1) % Traits::kConsumers), 256);
  }
};

}  // namespace flash3::device
