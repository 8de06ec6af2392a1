// The consumer warpgroups' main loop of the kernel for wide heads, and the exchange of scores that it lives on.
//
// A cluster of two thread blocks has one tile of query rows. Each of them holds half of the columns of Q, K, V and the
// output, so that the output fits its registers, and computes Q * K^T over its half of the columns. The two add up
// their halves of the scores through distributed shared memory; from there on both have the same scores, the same
// softmax and the same probabilities, and multiply them with their columns of V.
#pragma once

#include <cstdint>
#include <utility>

#include "device/cluster.cuh"
#include "device/fwd_args.h"
#include "device/gmma.cuh"
#include "device/mainloop_sm90.cuh"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/tile_loads.cuh"
#include "device/wide_traits.cuh"

namespace flash3::device {

// Between a consumer warpgroup and the one with the same rows in the other block. A thread there has the same places
// of the scores. Both send their scores of a block after they have received those of the block before.
template <class Traits>
struct ScoreExchange {
  static constexpr int kScores = Traits::kBlockN / 2;
  static constexpr uint32_t kBytes = kScores * 4 * 128;

  typename Traits::SharedStorage &smem;
  const int warpgroup;
  uint32_t sent = 0;  // blocks so far, the low bit

  __device__ __forceinline__ ScoreExchange(typename Traits::SharedStorage &s, int wg) : smem(s), warpgroup(wg) {}

  __device__ __forceinline__ void send(const float (&s)[kScores]) {
    uint64_t *const full = &smem.barriers.scores_full[warpgroup];
    ptx::mbarrier_wait(&smem.barriers.scores_empty[warpgroup], sent ^ 1);
    if (threadIdx.x % 128 == 0) ptx::mbarrier_arrive_expect_tx(full, kBytes);
    // Addresses are made here and not kept, since registers are short.
    const uint32_t to = of_other(&smem.scores[warpgroup][0][threadIdx.x % 128]);
    const uint32_t to_full = of_other(full);
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      ptx::st_async_16(to + i * 128 * 16, s[4 * i], s[4 * i + 1], s[4 * i + 2], s[4 * i + 3], to_full);
    }
    sent ^= 1;
  }

  // Adds what the other warpgroup has sent. The sum of two numbers does not depend on their order: both blocks get the
  // same bits. After the last block of keys nobody waits for the place to be free: told so, the other block might have
  // ended.
  __device__ __forceinline__ void receive(float (&s)[kScores], bool last) {
    ptx::mbarrier_wait(&smem.barriers.scores_full[warpgroup], sent ^ 1);
    const float4 *const from = &smem.scores[warpgroup][0][threadIdx.x % 128];
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float4 x = from[i * 128];
      s[4 * i] += x.x;
      s[4 * i + 1] += x.y;
      s[4 * i + 2] += x.z;
      s[4 * i + 3] += x.w;
      if (i % 2 == 1) ptx::compiler_fence();  // no more registers than for two at a time
    }
    if (last) return;
    // The values must have arrived before the other block stores the next ones in their place. It is told over another
    // way than the loads take, so that being issued behind them is not enough: this vote, always true, needs them all.
    float all = 0.f;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) all += s[4 * i];
    const bool first = threadIdx.x % 32 == 0;
    if (__any_sync(0xffffffffu, first || all > 0.f) && first) {
      ptx::mbarrier_arrive_cluster(of_other(&smem.barriers.scores_empty[warpgroup]));
    }
  }

 private:
  static __device__ __forceinline__ uint32_t of_other(const void *own) {
    return ptx::mapa(ptx::shared_address(own), ptx::cluster_rank() ^ 1);
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
  ScoreExchange<Traits> exchange;
  RingState<Traits::kStages> k_state = RingState<Traits::kStages>::consumer();
  RingState<Traits::kStages> v_state = RingState<Traits::kStages>::consumer();

  __device__ __forceinline__ WideMainloop(const FwdArgs &a, SharedStorage &s, int wg)
      : args(a), smem(s), warpgroup(wg), exchange(s, wg) {}

  // Leaves the last product in flight, which completes `o`. The tile must have a key block.
  __device__ __forceinline__ void run(const WorkTile &tile, const core::BlockRange &range, float (&o)[kOutputs],
                                      OnlineSoftmax &softmax) {
    const float slope = Traits::kScoreMod ? alibi_slope(args, tile) : 0.f;
    float s[kScores], next[kScores];
    uint32_t p[kScores / 2];
    float correction[2];
    const int32_t exact_from = range.end - OnlineSoftmax::exact_blocks(args.window.limited(), kBlockN);
    const auto to_probabilities = [&](int32_t n) {
      const bool capped =
          Traits::kScoreMod && range.is_full(n) && update_capped(s, args, slope, n >= exact_from, softmax, correction);
      if (!capped) {
        const int64_t first_row = Traits::warp_row(tile, warpgroup);
        if constexpr (Traits::kScoreMod) RowScores(args, tile, first_row, slope).modify(s, args, n * kBlockN);
        if (!range.is_full(n)) {
          const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
          mask_scores(s, core::BlockMask::make(mask, first_row, int64_t{n} * kBlockN), args.window.left >= 0);
        }
        softmax.update_lazily(s, n >= exact_from, correction);
      }
      softmax.add(s);
    };
    // The next block's scores are sent as soon as they are there: they travel while this block's softmax is computed.
    const auto send_next = [&] {
      release(smem.barriers.k_empty, k_state);
      exchange.send(next);
    };
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0.f;

    if (warpgroup == Traits::kConsumers - 1) pass_turn();  // the ring of turns starts with the first warpgroup
    ptx::mbarrier_wait(&smem.barriers.q_full[0], 0);
    wait_key_block();
    take_turn();
    issue_qk(next);
    pass_turn();
    wgmma_wait_group<0>();
    fence_accumulators(next);
    send_next();
    int32_t n = range.end - 1;
    const bool single = ptx::uniform(n == range.begin);
    copy(next, s);
    if (single) {
      exchange.receive(s, true);
    } else {
      wait_key_block();
      take_turn();
      issue_qk(next);
      pass_turn();
      exchange.receive(s, false);
      wgmma_wait_group<0>();
      fence_accumulators(next);
      send_next();
    }
    to_probabilities(n);
    pack_probabilities<Element>(s, p);
    // p: probabilities of the block behind block n, whose scores are in `s`.
#pragma unroll 1
    for (--n; ptx::uniform(n > range.begin); --n) {
      copy(next, s);
      wait_key_block();
      ptx::mbarrier_wait(&smem.barriers.v_full[v_state.index()], v_state.parity());
      take_turn();
      issue_pv(p, o);
      issue_qk(next);
      pass_turn();
      wgmma_wait_group<1>();
      fence_accumulators(o);
      release(smem.barriers.v_empty, v_state);
      exchange.receive(s, false);
      to_probabilities(n);
      pack_probabilities<Element>(s, p);
      softmax.rescale(o, correction);
      wgmma_wait_group<0>();
      fence_accumulators(next);
      send_next();
    }
    if (!single) {
      copy(next, s);
      multiply_values(p, o);
      wgmma_wait_group<0>();
      fence_accumulators(o);
      release(smem.barriers.v_empty, v_state);
      exchange.receive(s, true);
      to_probabilities(n);
      pack_probabilities<Element>(s, p);
      softmax.rescale(o, correction);
    }
    multiply_values(p, o);
  }

  // After run(): the first warpgroup takes the turn that is left over.
  __device__ __forceinline__ void end_turns() const {
    if (warpgroup == 0) take_turn();
  }

  // Where this warpgroup stages its output: in the place of its rows of Q, which nobody else reads.
  __device__ __forceinline__ Element *output_place() const { return smem.q[0] + warpgroup * 64 * Traits::kBoxCols; }

 private:
  static __device__ __forceinline__ void copy(const float (&from)[kScores], float (&to)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) to[i] = from[i];
  }

  __device__ __forceinline__ void wait_key_block() const {
    ptx::mbarrier_wait(&smem.barriers.k_full[k_state.index()], k_state.parity());
  }

  // P * V of a block without a product Q * K^T beside it.
  __device__ __forceinline__ void multiply_values(uint32_t (&p)[kScores / 2], float (&o)[kOutputs]) const {
    ptx::mbarrier_wait(&smem.barriers.v_full[v_state.index()], v_state.parity());
    take_turn();
    issue_pv(p, o);
    pass_turn();
  }

  // Descriptors are made here and not kept, since registers are short.
  __device__ __forceinline__ void issue_qk(float (&s)[kScores]) const {
    const Element *const q = smem.q[0] + warpgroup * 64 * Traits::kBoxCols;
    gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN>(
        ptx::uniform(Descriptor::k_major(ptx::address_in_block(q))),
        ptx::uniform(Descriptor::k_major(ptx::address_in_block(smem.k[k_state.index()]))), s);
  }

  __device__ __forceinline__ void issue_pv(uint32_t (&p)[kScores / 2], float (&o)[kOutputs]) const {
    gemm_rs<Element, Traits::kHeadDim, kBlockN, Traits::kSwizzleBytes>(
        p, ptx::uniform(Descriptor::template mn_major<kBlockN>(ptx::address_in_block(smem.v[v_state.index()]))), o);
  }

  // One arrival a warp, once the whole warp has read the buffer.
  template <int kStages>
  __device__ __forceinline__ static void release(uint64_t (&empty)[kStages], RingState<kStages> &state) {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&empty[state.index()]);
    state.advance();
  }

  __device__ __forceinline__ void take_turn() const { ptx::bar_sync(NamedBarriers<Traits>::turn(warpgroup), 256); }
  __device__ __forceinline__ void pass_turn() const {
    ptx::bar_arrive(NamedBarriers<Traits>::turn((warpgroup + 1) % Traits::kConsumers), 256);
  }
};

}  // namespace flash3::device
