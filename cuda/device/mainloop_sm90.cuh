// The consumer warpgroups' main loop: O += softmax(Q * K^T) * V over the key blocks of one tile.
//
// Inside a warpgroup the product Q * K^T of one block and P * V of the block before are in flight together, and the
// softmax runs while P * V does. Between warpgroups a ring of named barriers hands the tensor cores on, so that one
// warpgroup's softmax runs under the products of the others.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/gmma.cuh"
#include "device/producer_sm90.cuh"
#include "device/ptx.cuh"
#include "device/recompute.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// Named barriers; CUTLASS keeps the hardware's first eight to itself.
template <class Traits>
struct NamedBarriers {
  static __device__ __forceinline__ uint32_t turn(int warpgroup) { return warpgroup; }
  static __device__ __forceinline__ uint32_t epilogue(int warpgroup) { return Traits::kConsumers + warpgroup; }
};

template <class Traits>
struct Mainloop {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;            // scores a thread holds
  static constexpr int kOutputs = Traits::kHeadDim / 2;  // outputs a thread holds

  const FwdArgs &args;
  SharedStorage &smem;
  const int warpgroup;  // among the consumers
  // Low words of the descriptors of this warpgroup's rows of Q, and of the first stage of K and V.
  const uint32_t q_low, k_low, v_low;
  RingState<1> q_state{0};
  RingState<Traits::kStages> k_state{0}, v_state{0};

  __device__ __forceinline__ Mainloop(const FwdArgs &a, SharedStorage &s, int wg)
      : args(a),
        smem(s),
        warpgroup(wg),
        q_low(ptx::uniform(Descriptor::k_major(ptx::shared_address(s.q + wg * 64 * Traits::kBoxCols)))),
        k_low(ptx::uniform(Descriptor::k_major(ptx::shared_address(s.k)))),
        v_low(ptx::uniform(Descriptor::template mn_major<kBlockN>(ptx::shared_address(s.v)))) {}

  // The ring of turns starts with the first warpgroup: the last one gives it its first turn, once in a kernel.
  __device__ __forceinline__ void begin_turns() const {
    if (warpgroup == Traits::kConsumers - 1) pass_turn();
  }
  // The first warpgroup takes the turn that is left over.
  __device__ __forceinline__ void end_turns() const {
    if (warpgroup == 0) take_turn();
  }

  // Leaves the unscaled output in `o` and the row statistics in `softmax`. The tile must have a key block.
  __device__ __forceinline__ void run(const WorkTile &tile, const core::BlockRange &range, float (&o)[kOutputs],
                                      OnlineSoftmax &softmax) {
    float s[kScores];
    uint32_t p[kScores / 2];
    float correction[2];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0.f;

    int32_t n = range.end - 1;
    auto prepare = [&](int32_t block) {
      if (!args.score_mod && range.is_full(block)) return;
      const RowScores rows(args, tile, Traits::warp_row(tile, warpgroup));
      if (args.score_mod) rows.modify(s, args, block * kBlockN);
      if (!range.is_full(block)) rows.mask(s, args.window.left >= 0, block * kBlockN);
    };

    // First block.
    ptx::mbarrier_wait(&smem.q_full, q_state.parity);
    q_state.advance();
    ptx::mbarrier_wait(&smem.k_full[k_state.index], k_state.parity);
    take_turn();
    issue_qk(s);
    pass_turn();
    wgmma_wait_group<0>();
    fence_accumulators(s);
    release(smem.k_empty, k_state);
    prepare(n);
    softmax.update(s, correction);
    pack_probabilities<Element>(s, p);
    --n;

    const int32_t blocks_before = args.window.limited() ? 1 : OnlineSoftmax::kBlocksBefore;
    // The inner loop is the one that counts: whole blocks, whose scores go to the softmax as they are.
    while (ptx::uniform(n >= range.begin)) {
      const bool may_skip_max = !Traits::kExactMax && range.end - 1 - n >= blocks_before && softmax.has_references();
      if (!args.score_mod && (Traits::kExactMax || may_skip_max)) {
        for (; ptx::uniform(range.is_full(n)); --n) {
          if constexpr (Traits::kExactMax) {
            step(s, p, o, [&] { softmax.update(s, correction); });
          } else {
            float sum[2];
            step(s, p, o, [&] { softmax.exponentials(s, sum); });
            if (softmax.accept(sum)) continue;
            recompute_scores<Element>(args, tile, Traits::warp_row(tile, warpgroup), n * kBlockN, s);
            softmax.update(s, correction);
            pack_probabilities<Element>(s, p);
          }
          rescale(o, correction);
        }
      }
      if (ptx::uniform(n >= range.begin)) {
        step(s, p, o, [&] {
          prepare(n);
          softmax.update(s, correction);
        });
        rescale(o, correction);
        --n;
      }
    }

    // Q is not needed any more; where the output is staged in its place, the epilogue gives it back.
    if constexpr (!Traits::kOutAliasesQ) release_q();

    ptx::mbarrier_wait(&smem.v_full[v_state.index], v_state.parity);
    issue_pv(p, o);
    wgmma_wait_group<0>();
    fence_accumulators(o);
    release(smem.v_empty, v_state);
  }

  __device__ __forceinline__ void release_q() const {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&smem.q_empty);
  }

 private:
  // One key block: s = Q * K^T of this block while o += P * V of the block before; then p = what the functor makes of
  // s.
  template <class ToProbabilities>
  __device__ __forceinline__ void step(float (&s)[kScores], uint32_t (&p)[kScores / 2], float (&o)[kOutputs],
                                       ToProbabilities to_probabilities) {
    ptx::mbarrier_wait(&smem.k_full[k_state.index], k_state.parity);
    take_turn();
    issue_qk(s);
    ptx::mbarrier_wait(&smem.v_full[v_state.index], v_state.parity);
    issue_pv(p, o);
    pass_turn();
    wgmma_wait_group<1>();
    fence_accumulators(s);
    release(smem.k_empty, k_state);
    to_probabilities();
    wgmma_wait_group<0>();
    fence_accumulators(o);
    release(smem.v_empty, v_state);
    pack_probabilities<Element>(s, p);
  }

  __device__ __forceinline__ void issue_qk(float (&s)[kScores]) const {
    gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN>(
        q_low, k_low + k_state.index * (Traits::kKBytes / 16), s);
  }

  __device__ __forceinline__ void issue_pv(uint32_t (&p)[kScores / 2], float (&o)[kOutputs]) const {
    gemm_rs<Element, Traits::kHeadDim, kBlockN, Traits::kSwizzleBytes>(
        p, v_low + v_state.index * (Traits::kVBytes / 16), o);
  }

  // Row maxima settle after a few blocks; from then on the factor is 1 nearly always.
  __device__ __forceinline__ static void rescale(float (&o)[kOutputs], const float (&correction)[2]) {
    if (__all_sync(0xffffffffu, correction[0] == 1.f && correction[1] == 1.f)) return;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] *= correction[(i / 2) % 2];
  }

  // One arrival a warp, once the whole warp has read the buffer.
  template <int kStages>
  __device__ __forceinline__ static void release(uint64_t (&empty)[kStages], RingState<kStages> &state) {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&empty[state.index]);
    state.advance();
  }

  __device__ __forceinline__ void take_turn() const { ptx::bar_sync(NamedBarriers<Traits>::turn(warpgroup), 256); }
  __device__ __forceinline__ void pass_turn() const {
    ptx::bar_arrive(NamedBarriers<Traits>::turn((warpgroup + 1) % Traits::kConsumers), 256);
  }
};

}  // namespace flash3::device
