// The consumer warpgroups' main loop: O += softmax(Q * K^T) * V over the key blocks of one tile.
//
// Inside a warpgroup the product Q * K^T of one block and P * V of the block before are in flight together, and the
// softmax runs while P * V does. Between warpgroups a ring of named barriers hands the tensor cores on, so that one
// warpgroup's softmax runs under the products of the others.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device/cluster.cuh"
#include "device/direct_scores.cuh"
#include "device/fwd_args.h"
#include "device/gmma.cuh"
#include "device/pack.cuh"
#include "device/producer_sm90.cuh"
#include "device/ptx.cuh"
#include "device/recompute.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/swizzle.cuh"
#include "device/tile_reader.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// Named barriers; CUTLASS keeps the hardware's first eight to itself.
template <class Traits>
struct NamedBarriers {
  static __device__ __forceinline__ uint32_t turn(int warpgroup) { return first() + warpgroup; }
  static __device__ __forceinline__ uint32_t epilogue(int warpgroup) {
    return Traits::kWarpgroups + first() + warpgroup;
  }
  // Of the warpgroup's stream.
  static __device__ __forceinline__ uint32_t first() {
    if constexpr (Traits::kStreams == 1) return 0;
    return ptx::uniform(threadIdx.x / 128 - 1) / Traits::kConsumers * Traits::kConsumers;
  }
};

template <class Traits>
struct Mainloop {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  using Descriptor = SmemDescriptor<Traits::kSwizzleBytes>;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kScores = kBlockN / 2;             // scores a thread holds
  static constexpr int kOutputs = Traits::kHeadDimV / 2;  // outputs a thread holds
  static constexpr int kKept = Traits::kKeptSteps;
  using ScoreKinds = std::conditional_t<Traits::kCapped, CappedScores<Traits::kScalesQ>, AnyScores>;

  const FwdArgs &args;
  SharedStorage &smem;
  const int warpgroup;  // among the consumers
  // Low words of the descriptors of this warpgroup's rows of Q, and of K and V, each in the first stage.
  const uint32_t q_low, k_low, v_low;
  RingState<Traits::kQStages> q_state = RingState<Traits::kQStages>::consumer();
  // Of K. V of a block is multiplied behind K of the next one: it is always a step behind.
  RingState<Traits::kStages> k_state = RingState<Traits::kStages>::consumer();
  uint32_t kept_q[kKept > 0 ? 4 * kKept : 1];  // the first columns of this warp's rows of the tile's Q

  __device__ __forceinline__ Mainloop(const FwdArgs &a, SharedStorage &s, int wg)
      : args(a),
        smem(s),
        warpgroup(wg),
        q_low(ptx::uniform(Descriptor::k_major(place(s.q[0] + wg * 64 * Traits::kBoxCols)))),
        k_low(ptx::uniform(Descriptor::k_major(place(s.k)))),
        v_low(ptx::uniform(Descriptor::template mn_major<kBlockN>(place(s.v)))) {}

  // The ring of turns starts with the first warpgroup: the last one gives it its first turn, once in a kernel.
  __device__ __forceinline__ void begin_turns() const {
    if (warpgroup == Traits::kConsumers - 1) pass_turn();
  }
  // The first warpgroup takes the turn that is left over.
  __device__ __forceinline__ void end_turns() const {
    if (warpgroup == 0) take_turn();
  }

  // Waits for Q and the first key block of the next tile that has one.
  __device__ __forceinline__ void wait_tile(const RingState<Traits::kStages> &keys) const {
    ptx::mbarrier_wait(&smem.barriers.q_full[q_state.index()], q_state.parity());
    wait_keys(smem.barriers.k_full, keys);
  }

  // The scores of a tile's first block, behind those that are left out, for a tile that finish_and_start() did not
  // start.
  __device__ __forceinline__ void start(const TileReader<Traits> &reader, float (&s)[kScores]) {
    const RingState<Traits::kStages> keys = {k_state.step + reader.hidden_blocks(warpgroup)};
    wait_tile(keys);
    keep_q();
    take_turn();
    issue_qk(q_descriptor(), k_descriptor(keys), s);
    pass_turn();
    if constexpr (Traits::kStagesInV) release_out();
    wgmma_wait_group<0>();
    fence_accumulators(s);
  }

  // From the first block's scores in `s` up to the last product: leaves the probabilities of the last block in `p`,
  // what all others add up to in `o`, and the row statistics in `softmax`. The tile must have a key block.
  __device__ __forceinline__ void run(const TileReader<Traits> &reader, core::BlockRange range, float (&s)[kScores],
                                      uint32_t (&p)[kScores / 2], float (&o)[kOutputs], OnlineSoftmax &softmax) {
    const WorkTile &tile = reader.tile();
    // Asked again, and not kept from the tile's start on: registers are short while the tile before ends.
    const int32_t left_out = reader.hidden_blocks(warpgroup);
    const auto for_left_out = [&, first = k_state.step](auto f) {
#pragma unroll 1
      for (int32_t i = 0; i < left_out; ++i) f(RingState<Traits::kStages>{first + i});
    };
    const auto release_v = [&](const RingState<Traits::kStages> &values) {
      ptx::mbarrier_wait(&smem.barriers.v_full[values.index()], values.parity());
      release(smem.barriers.v_empty, values);
    };
    if constexpr (Traits::kTrims) {
      const core::BlockMask edges = {0, ptx::uniform(tile.mask.edges.end), ptx::uniform(tile.mask.edges.length)};
      range.full_end = core::full_end_of_rows(range, edges.key_end(warpgroup * 64), kBlockN);
      range.end -= left_out;
      range.full_end = min(range.full_end, range.end);
      // The first block that is taken has been waited for, so that those are there, too.
      for_left_out([&](const RingState<Traits::kStages> &keys) {
        take_turn();
        pass_turn();
        release(smem.barriers.k_empty, keys);
        if constexpr (Traits::kOverlapsTiles) release_v(keys);
      });
      k_state.step += left_out;
    }
    // What does not change in the loop is kept from changing: the descriptors of Q then stay in uniform registers.
    const uint32_t q = q_descriptor();
    uint64_t *const q_empty = &smem.barriers.q_empty[q_state.index()];
    q_state.advance();
    // The scores are there: gives back the key block, and Q after the last one.
    const auto release_k = [&](bool last) {
      release(smem.barriers.k_empty, k_state);
      k_state.advance();
      if (last && threadIdx.x % 32 == 0) ptx::mbarrier_arrive(q_empty);
    };
    float correction[2];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0.f;

    int32_t n = range.end - 1;
    const float slope = Traits::kScoreMod && !Traits::kCapped ? alibi_slope(args, tile) : 0.f;
    DirectScores<ScoreKinds, Traits::kAsksAgain> direct(args, tile, Traits::warpgroup_row(tile, warpgroup), kBlockN,
                                                        slope);
    // Of the rows from one on, counted from the first one of the tile.
    const auto mask_of = [&](int32_t block, int32_t in_tile) {
      const core::BlockRange all = {range.begin, Traits::kTrims ? tile.range.end : range.end, 0, 0};
      return tile.mask.of_block(block, in_tile, all, kBlockN);
    };
    const auto prepare = [&](int32_t block) {
      if (!Traits::kScoreMod && range.is_full(block)) return;
      const int64_t first_row = Traits::warp_row(tile, warpgroup);
      if constexpr (Traits::kScoreMod) {
        RowScores(args, tile, first_row, slope).template modify<ScoreKinds>(s, args, block * kBlockN);
      }
      if (range.is_full(block)) return;
      const TileRows<Traits> rows{args};
      const int64_t first_query = rows.query(first_row);
      const auto in_tile = static_cast<int32_t>(first_query - rows.query(Traits::warpgroup_row(tile, 0)));
      mask_scores(s, mask_of(block, in_tile), args.window.left >= 0,
                  [&](int row) { return static_cast<int>(rows.query(first_row + row) - first_query); });
    };

    // Whether a row of this warp sees a key of a masked block.
    const auto sees = [&](int32_t block) {
      const auto in_tile = static_cast<int32_t>(Traits::warp_row(tile, warpgroup) - Traits::warpgroup_row(tile, 0));
      const core::BlockMask mask = mask_of(block, in_tile);
      return mask.key_end(15) > 0 && mask.key_begin(0) < kBlockN;
    };

    release_k(n == range.begin);
    if (!Traits::kSkips || range.is_full(n) || ptx::uniform(sees(n))) {
      prepare(n);
      softmax.update(s, correction);
      pack_probabilities<Element>(s, p);
    } else {  // what they would come to, all of them being masked
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) p[i] = 0;
    }
    // Where the output of the tile before is staged in the place of V, that comes later than K.
    if constexpr (Traits::kTrims && !Traits::kOverlapsTiles) for_left_out(release_v);
    --n;

    const int32_t exact_from = range.end - OnlineSoftmax::exact_blocks(args.window.limited(), kBlockN);
    const int32_t blocks_before = args.window.limited() ? 1 : OnlineSoftmax::kBlocksBefore;
    // The inner loop is the one that counts: whole blocks, whose scores go to the softmax as they are.
    // Where maxima are looked for, the same with the question at the top needs fewer registers.
    while (!Traits::kExactMax || ptx::uniform(n >= range.begin)) {
      const bool may_skip_max = !Traits::kExactMax && range.end - 1 - n >= blocks_before && softmax.has_references();
      if ((!Traits::kScoreMod || Traits::kDirectScores) && (Traits::kExactMax || may_skip_max)) {
        if constexpr (Traits::kExactMax) {
          for (; ptx::uniform(range.is_full(n)); --n) {
            step(q, s, p, o, [&] {
              release_k(n == range.begin);
              softmax.update_lazily(s, n >= exact_from, correction);
              softmax.add(s);
            });
            softmax.rescale(o, correction);
          }
        } else if (ptx::uniform(range.is_full(n) && (!Traits::kDirectScores || direct.good_for(n)))) {
          float sum[2];
          bool fits;
          // Counts the block behind n, or takes it again where a sum was too large.
          const auto settle = [&] {
            if (ptx::uniform_all(fits)) {
              softmax.count(sum);
              return;
            }
            const int64_t first_row = Traits::warp_row(tile, warpgroup);
            const int32_t first_key = (n + 1) * kBlockN;
            recompute_scores<Traits>(args, tile, first_row, first_key, s);
            if constexpr (Traits::kDirectScores) {
              if constexpr (Traits::kScalesQ) scale(s);
              direct.note_sums(args, sum, softmax, o);
              RowScores(args, tile, first_row, slope).template modify<ScoreKinds>(s, args, first_key);
            }
            softmax.update(s, correction);
            if constexpr (Traits::kDirectScores) direct.note_references(args, softmax);
            pack_probabilities<Element>(s, p);
            softmax.rescale(o, correction);
          };
          // One question at the end of a block decides whether another one of the kind follows.
          const auto whole_blocks = [&](const auto &limits, auto exponentials) {
            constexpr bool kFromZero = std::is_same_v<decltype(limits), const OnlineSoftmax::Bounds &>;
            const auto whole_block = [&] {
              step<Traits::kKnownKeys && !kFromZero>(q, s, p, o, [&] {
                release_k(n == range.begin);
                exponentials();
              });
              fits = OnlineSoftmax::fit(sum, limits);
              --n;
            };
            if constexpr (kFromZero) {
              // What these give is relative to 0. The product before was not; it is complete behind the first block.
              // And what the loop counts stays in uniform registers if it is told so here, once.
              k_state.step = ptx::uniform(k_state.step);
              n = ptx::uniform(n);
              whole_block();
              softmax.refer_to({0.f, 0.f}, o);
              if (!ptx::uniform_all(fits && n >= range.full_begin)) return;
              softmax.count(sum);
            }
            while (true) {
              whole_block();
              if (!ptx::uniform_all(fits && n >= range.full_begin)) break;
              softmax.count(sum);
            }
          };
          if constexpr (Traits::kDirectScores) {
            direct.begin(args, softmax);
            const float limit[2] = {direct.limit(args, softmax, 0), direct.limit(args, softmax, 1)};
            direct.by_kind(args, [&](auto kind) {
              const auto exponentials = [&] {
                direct.exponentials(kind, s, sum, args, tile, Traits::warp_row(tile, warpgroup), int64_t{n} * kBlockN,
                                    softmax);
              };
              if constexpr (kind() == decltype(direct)::Kind::kMonic) {
                whole_blocks(direct.bounds(args, kScores / 2), exponentials);
              } else {
                whole_blocks(limit, exponentials);
              }
            });
          } else {
            constexpr float kLimit[2] = {OnlineSoftmax::kLargestSum, OnlineSoftmax::kLargestSum};
            whole_blocks(kLimit, [&] { softmax.template exponentials<typename Traits::Turn>(s, sum, args.zero); });
          }
          settle();
        }
      }
      if (!ptx::uniform(n >= range.begin)) break;
      step(q, s, p, o, [&] {
        release_k(n == range.begin);
        if constexpr (Traits::kScoreMod && !Traits::kDirectScores) {
          const bool exact = n >= exact_from;
          if (!range.is_full(n) || !update_capped(s, args, slope, exact, softmax, correction)) {
            prepare(n);
            softmax.update_lazily(s, exact, correction);
          }
          softmax.add(s);
        } else {
          prepare(n);
          softmax.update(s, correction);
        }
      });
      softmax.rescale(o, correction);
      --n;
    }
  }

  // The last product of a tile, which stays in flight.
  __device__ __forceinline__ void finish(uint32_t (&p)[kScores / 2], float (&o)[kOutputs]) {
    if (!ptx::uniform_all(can_finish())) wait_to_finish();
    issue_pv(p, v_descriptor(v_state()), o);
  }

  // The same, and behind it the first product of the next tile, if there is one with a key block: join() completes `s`.
  // Returns whether there is; if not, that product reads whatever lies there, and `s` is of no use.
  __device__ __forceinline__ bool finish_and_start(uint32_t (&p)[kScores / 2], float (&o)[kOutputs],
                                                   float (&s)[kScores], const TileReader<Traits> &next) {
    // An answer of a barrier takes 50 clocks and more: all of them are asked at once, and waited for if need be.
    const bool has_tile = next.is_there();
    const bool has_q = ptx::mbarrier_test(&smem.barriers.q_full[q_state.index()], q_state.parity());
    const bool has_k = ptx::mbarrier_test(&smem.barriers.k_full[k_state.index()], k_state.parity());
    const bool has_rest = can_finish();
    if (!ptx::uniform_all(has_tile)) next.wait();
    const bool has_next = next.has_blocks();
    const int32_t left_out = next.hidden_blocks(warpgroup);
    const RingState<Traits::kStages> keys = {k_state.step + left_out};
    if (has_next) {
      if (!ptx::uniform_all(has_q && has_k && left_out == 0)) wait_tile(keys);
      keep_q();
    }
    if (!ptx::uniform_all(has_rest)) wait_to_finish();
    // The epilogue is next, and the turn tells the other warps.
    if (!Traits::kStores && ptx::elect_one()) ptx::tma_store_wait_read();
    take_turn();
    issue_pv(p, v_descriptor(v_state()), o);
    issue_qk(q_descriptor(), k_descriptor(keys), s);
    pass_turn();
    return has_next;
  }

  // Completes `o`.
  __device__ __forceinline__ void wait_output(float (&o)[kOutputs]) {
    wgmma_wait_group<Traits::kOverlapsTiles ? 1 : 0>();
    fence_accumulators(o);
    release(smem.barriers.v_empty, v_state());
  }

  // Where this warpgroup stages its output, once nobody reads there any more. In the place of V the first warpgroup
  // takes that of the block before the last one, with which the second one has been done for some time, and the second
  // one that of the last block, which the first one multiplies before it. The producer loads V again when both outputs
  // have left.
  __device__ __forceinline__ Element *output_place() const {
    if constexpr (!Traits::kStagesInV) return smem.own_out + warpgroup * 64 * Traits::kHeadDimV;
    const uint32_t back = 2 - warpgroup;
    if (k_state.step < back) return smem.v[k_state.step % Traits::kStages];  // no block has been there
    const RingState<Traits::kStages> block = {k_state.step - back};
    ptx::mbarrier_wait(&smem.barriers.v_empty[block.index()], block.parity());
    return smem.v[block.index()];
  }

  static __device__ __forceinline__ void join(float (&s)[kScores]) {
    wgmma_wait_group<0>();
    fence_accumulators(s);
  }

 private:
  static __device__ __forceinline__ uint32_t place(const void *smem) {
    return Traits::kPaired ? ptx::address_in_block(smem) : ptx::shared_address(smem);
  }

  // Whether the last V of the tile is there, and, for a Storer, the place of what it is to store: q_state has counted
  // the tile, so that the phase is that of the one before.
  __device__ __forceinline__ bool can_finish() const {
    const bool has_v = ptx::mbarrier_test(&smem.barriers.v_full[v_state().index()], v_state().parity());
    if constexpr (!Traits::kStores) return has_v;
    const bool has_place = ptx::mbarrier_test(&smem.barriers.stored[warpgroup], q_state.step % 2);
    return has_v && has_place;
  }
  __device__ __forceinline__ void wait_to_finish() const {
    ptx::mbarrier_wait(&smem.barriers.v_full[v_state().index()], v_state().parity());
    if constexpr (Traits::kStores) ptx::mbarrier_wait(&smem.barriers.stored[warpgroup], q_state.step % 2);
  }

  // One key block: s = Q * K^T of this block while o += P * V of the block before; then p = what the functor makes of
  // s, after it has given back the key block. kTold: see Traits::kKnownKeys.
  template <bool kTold = Traits::kKnownKeys, class ToProbabilities>
  __device__ __forceinline__ void step(uint32_t q, float (&s)[kScores], uint32_t (&p)[kScores / 2],
                                       float (&o)[kOutputs], ToProbabilities to_probabilities) {
    // All that the products need to know, before anything is waited for: the answers of barriers take 50 clocks.
    const RingState<Traits::kStages> keys = {kTold ? ptx::uniform(k_state.step) : k_state.step},
                                     values = {keys.step - 1};
    const bool has_k = ptx::mbarrier_test(&smem.barriers.k_full[keys.index()], keys.parity());
    const bool has_v = ptx::mbarrier_test(&smem.barriers.v_full[values.index()], values.parity());
    const uint32_t k = k_descriptor(keys);
    const uint32_t v = v_descriptor(values);
    wait_keys(smem.barriers.k_full, keys, has_k);
    take_turn();
    issue_qk(q, k, s);
    wait_keys(smem.barriers.v_full, values, has_v);
    issue_pv(p, v, o);
    pass_turn();
    wgmma_wait_group<1>();
    fence_accumulators(s);
    to_probabilities();
    wgmma_wait_group<0>();
    fence_accumulators(o);
    release(smem.barriers.v_empty, values);
    pack_probabilities<Element>(s, p);
  }

  // Until the key block is in its buffer. `there`: whether an earlier question has been answered with yes.
  template <int kStages>
  __device__ __forceinline__ void wait_keys(const uint64_t (&full)[kStages], const RingState<kStages> &state,
                                            bool there = false) const {
    if (!there) ptx::mbarrier_wait(&full[state.index()], state.parity());
  }

  // Of this warpgroup's rows in the stage of Q that q_state is at.
  __device__ __forceinline__ uint32_t q_descriptor() const {
    return ptx::uniform(q_low + q_state.index() * (Traits::kQBytes / 16));
  }

  // Takes what is kept of Q out of the stage that q_state is at.
  __device__ __forceinline__ void keep_q() {
    const int lane = threadIdx.x % 32;
    const int row = warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + lane % 16;
    const uint32_t q = ptx::shared_address(smem.q[0]) + q_state.index() * Traits::kQBytes;
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      ptx::ldmatrix_x4(q + swizzled_offset<Traits::kSwizzleBytes, Traits::kBlockM>(row, 16 * k + lane / 16 * 8),
                       kept_q + 4 * k);
    }
    if constexpr (Traits::kScalesQ) scale_q();
  }

  // What products of a Q that has been multiplied come to.
  __device__ __forceinline__ void scale(float (&s)[kScores]) const {
#pragma unroll
    for (int i = 0; i < kScores; ++i) s[i] *= args.monic_softcap.q_factor;
  }
  // Multiplies this warp's rows of Q, in the stage that q_state is at, and what is kept of them by q_factor. The turn,
  // which comes next, tells the other warps of the warpgroup.
  __device__ __forceinline__ void scale_q() {
    const uint32_t factor = pack2<Element>(args.monic_softcap.q_factor, args.monic_softcap.q_factor);
#pragma unroll
    for (int i = 0; i < 4 * kKept; ++i) kept_q[i] = ptx::mul_bf16x2(kept_q[i], factor);
    constexpr int kKeptBlocks = 16 * kKept / Traits::kBoxCols;  // column blocks that are kept as a whole
    constexpr int kRowPieces = Traits::kSwizzleBytes / 16;      // of 16 bytes
    constexpr int kPieces = 16 * kRowPieces / 32;               // of a lane, in each column block
    const int first_row = warpgroup * 64 + threadIdx.x % 128 / 32 * 16;
    auto *const q = reinterpret_cast<uint4 *>(smem.q[q_state.index()]) + first_row * kRowPieces + threadIdx.x % 32;
#pragma unroll
    for (int block = kKeptBlocks; block < Traits::kColBlocks; ++block) {
      uint4 x[kPieces];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) x[i] = q[block * Traits::kBlockM * kRowPieces + 32 * i];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        q[block * Traits::kBlockM * kRowPieces + 32 * i] = {
            ptx::mul_bf16x2(x[i].x, factor), ptx::mul_bf16x2(x[i].y, factor), ptx::mul_bf16x2(x[i].z, factor),
            ptx::mul_bf16x2(x[i].w, factor)};
      }
    }
    ptx::fence_proxy_async_shared();
  }

  // Of the stages of K and V that their states are at.
  __device__ __forceinline__ uint32_t k_descriptor(const RingState<Traits::kStages> &state) const {
    return k_low + state.index() * (Traits::kKBytes / 16);
  }
  __device__ __forceinline__ uint32_t v_descriptor(const RingState<Traits::kStages> &state) const {
    return v_low + state.index() * (Traits::kVBytes / 16);
  }
  __device__ __forceinline__ RingState<Traits::kStages> v_state() const { return {k_state.step - 1}; }

  __device__ __forceinline__ void issue_qk(uint32_t q, uint32_t k, float (&s)[kScores]) const {
    gemm_ss<Element, kBlockN, Traits::kHeadDim, Traits::kSwizzleBytes, Traits::kBlockM, kBlockN, kKept>(q, k, s,
                                                                                                        kept_q);
  }

  __device__ __forceinline__ void issue_pv(uint32_t (&p)[kScores / 2], uint32_t v, float (&o)[kOutputs]) const {
    gemm_rs<Element, Traits::kHeadDimV, kBlockN, Traits::kSwizzleBytes>(p, v, o);
  }

  // Lets V of this tile in where the output of the tile before, if there is one, has been staged.
  __device__ __forceinline__ void release_out() const {
    if (q_state.step == 0 || !ptx::elect_one()) return;
    ptx::tma_store_wait_read();
    arrive_at_readers<Traits>(&smem.barriers.out_empty);
  }

  // One arrival a warp, once the whole warp has read the buffer.
  template <int kStages>
  __device__ __forceinline__ static void release(uint64_t (&empty)[kStages], const RingState<kStages> &state) {
    if (threadIdx.x % 32 == 0) arrive_at_readers<Traits>(&empty[state.index()]);
  }

  // A single warpgroup has its turn always, but its warps still meet there.
  __device__ __forceinline__ void take_turn() const {
    if constexpr (!Traits::kTakesTurns) return;
    ptx::bar_sync(NamedBarriers<Traits>::turn(warpgroup), Traits::kConsumers == 1 ? 128 : 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (!Traits::kTakesTurns || Traits::kConsumers == 1) return;
    ptx::bar_arrive(NamedBarriers<Traits>::turn((warpgroup + 1) % Traits::kConsumers), 256);
  }
};

}  // namespace flash3::device
