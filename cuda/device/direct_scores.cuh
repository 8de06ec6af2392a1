// Softcap and ALiBi in one step with the exponentials.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/monic_softcap.h"
#include "core/softcap.h"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/tile_traits.cuh"
#include "device/turns.cuh"

namespace flash3::device {

// Softcap or ALiBi and the exponentials in one step, for blocks whose scores nobody looks at in between: those that are
// taken without their maximum.
//
// Left of the diagonal the distance is linear in the key, and falls into the addend that the reference is in already.
// (So it is right of it, but there every block has larger scores than the one before, and would be taken twice.)
// The hyperbolic tangent is a polynomial there: the monic one, where there is one; of few terms, until an argument is
// too large for them; then of more terms, and for the rest of the tile not here once an argument has reached 1.
// kAsksAgain: whether few terms are tried again where a reference was too low for them, see note_references().
template <class Kinds, bool kAsksAgain>
struct DirectScores {
  float alibi_slope_log2;
  int32_t end;  // of the blocks it is good for, which are left of the diagonal of all rows of the warpgroup
  enum Terms : int { kMonic, kFew, kAll, kNone };
  int terms;  // of the polynomial that has been good enough in this tile so far

  __device__ __forceinline__ DirectScores(const FwdArgs &args, const WorkTile &tile, int64_t first_row, int32_t block_n,
                                          float slope)
      : alibi_slope_log2(slope), end(INT32_MAX), terms(first_of_others(args)) {
    if (Kinds::kScaled && args.monic_softcap.exists()) terms = kMonic;
    if (!Kinds::biased(args)) return;
    const int64_t keys = first_row + tile.seqlen_k - tile.seqlen_q + 1;
    end = Kinds::capped(args) || keys < 0 ? 0 : static_cast<int32_t>(keys / block_n);  // the two together: not here
  }

  __device__ __forceinline__ bool good_for(int32_t block) const { return terms != kNone && block < end; }

  // What the scores of a block go through: a loop of its own for each.
  enum class Kind { kMonic, kFewTerms, kAllTerms, kAlibi };
  template <Kind kKind>
  using Constant = std::integral_constant<Kind, kKind>;
  template <class F>
  __device__ __forceinline__ void by_kind(const FwdArgs &args, F f) const {
    if (Kinds::kScaled && ptx::uniform(terms == kMonic)) {
      if constexpr (Kinds::kScaled) f(Constant<Kind::kMonic>{});
    } else if (Kinds::uncapped(args)) {
      f(Constant<Kind::kAlibi>{});
    } else if (ptx::uniform(terms == kFew)) {  // told so, the compiler keeps what the loops count in uniform registers
      f(Constant<Kind::kFewTerms>{});
    } else {
      f(Constant<Kind::kAllTerms>{});
    }
  }

  // Before blocks of a kind. The monic polynomial is relative to 0: references must not be far from that.
  __device__ __forceinline__ void begin(const FwdArgs &args, const OnlineSoftmax &softmax) {
    if (!Kinds::kScaled || terms != kMonic) return;
    constexpr float kFarthest = core::MonicSoftcap::kFarthest;
    const bool near = fabsf(softmax.reference[0]) <= kFarthest && fabsf(softmax.reference[1]) <= kFarthest;
    if (!ptx::uniform_all(near)) terms = first_of_others(args);
  }

  // The largest sum of exponentials of row r that shows that the polynomial does, and that is not too large in itself.
  __device__ __forceinline__ float limit(const FwdArgs &args, const OnlineSoftmax &softmax, int r) const {
    return fminf(OnlineSoftmax::kLargestSum, limit_of_terms(args, softmax.reference[r]));
  }
  // Of the monic one: for sums of so many.
  static __device__ __forceinline__ OnlineSoftmax::Bounds bounds(const FwdArgs &args, int keys) {
    return {args.monic_softcap.largest, args.monic_softcap.least_mean * static_cast<float>(keys)};
  }

  // From the products in `s` to exponentials and their sums; a sum is infinite where the polynomial of all terms does
  // not do. warp_row: first row of the warp. Every row must have a reference.
  template <Kind kKind, int kS>
  __device__ __forceinline__ void exponentials(Constant<kKind>, float (&s)[kS], float (&sum)[2], const FwdArgs &args,
                                               const WorkTile &tile, int64_t warp_row, int64_t first_key,
                                               const OnlineSoftmax &softmax) const {
    const core::SoftcapPolynomial &f = polynomial(args);
    if constexpr (kKind == Kind::kMonic) {
      const core::MonicSoftcap &monic = args.monic_softcap;
      const float shift[2] = {monic.shift, monic.shift};
      exponentials_in_turns<Turns<8, false>>(s, sum, shift, args.zero,
                                             [&](int, float x, float of_row) { return monic.value(x, of_row); });
    } else if constexpr (kKind == Kind::kFewTerms) {
      using Turn = Turns<kS % 32 == 0 ? 16 : 8, true>;
      exponentials_in_turns<Turn>(s, sum, softmax.reference, args.zero,
                                  [&](int, float x, float reference) { return f.of_few_terms(x, reference); });
    } else if constexpr (kKind == Kind::kAllTerms) {
      uint32_t bits = 0;
      exponentials_in_turns<Turns<8, false>>(s, sum, softmax.reference, args.zero, [&](int, float x, float reference) {
        const float y = x * f.twice_inner;
        bits |= __float_as_uint(y);
        return f.of_all_terms(y, reference);
      });
      if ((bits & 0x40000000u) != 0) sum[0] = INFINITY;  // an argument of 1 or more: |y| >= 2
    } else {
      const int lane = threadIdx.x % 32;
      const int64_t diagonal = warp_row + lane / 4 + tile.seqlen_k - tile.seqlen_q;
      const auto distance = static_cast<int32_t>(diagonal - first_key - 2 * (lane % 4));
      float addend[2];  // of column 0
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        addend[r] = fmaf(-alibi_slope_log2, static_cast<float>(distance + 8 * r), -softmax.reference[r]);
      }
      using Turn = Turns<kS % 32 == 0 ? 32 : 24, false>;
      exponentials_in_turns<Turn>(s, sum, addend, args.zero, [&](int i, float x, float shift) {
        return fmaf(x, args.scale_log2, fmaf(alibi_slope_log2, static_cast<float>(i / 4 * 8 + i % 2), shift));
      });
    }
  }

  // After sums of a warp were beyond their limits, and before its references change.
  template <int kO>
  __device__ __forceinline__ void note_sums(const FwdArgs &args, const float (&sum)[2], OnlineSoftmax &softmax,
                                            float (&o)[kO]) {
    if constexpr (Kinds::kScaled) {
      if (terms == kMonic) {
        softmax.refer_to_sums(o);  // the others take the reference for what one score comes to, at least
        terms = first_of_others(args);
        return;
      }
    }
    const auto most = [&](int r) {
      const float reference = softmax.reference[r];
      return kAsksAgain ? largest_of_few(args, reference) : limit_of_terms(args, reference);
    };
    const bool too_large = terms == kFew ? sum[0] > most(0) || sum[1] > most(1) : sum[0] == INFINITY;
    if (__any_sync(0xffffffffu, too_large)) terms = terms == kFew ? kAll : kNone;
  }
  // And after they have changed: where one is so low that few terms may not do for what is not much lower, as that of a
  // row may be that has seen a single key, a block has raised it by now, or it stays like that.
  __device__ __forceinline__ void note_references(const FwdArgs &args, const OnlineSoftmax &softmax) {
    if (!kAsksAgain || terms != kFew) return;
    const core::SoftcapPolynomial &f = polynomial(args);
    const bool reach = f.few_terms_reach(softmax.reference[0]) && f.few_terms_reach(softmax.reference[1]);
    if (!ptx::uniform_all(reach)) terms = kAll;
  }

 private:
  static __device__ __forceinline__ const core::SoftcapPolynomial &polynomial(const FwdArgs &args) {
    return Kinds::polynomial(args);
  }
  static __device__ __forceinline__ Terms first_of_others(const FwdArgs &args) {
    return polynomial(args).few_limit > 0.f ? kFew : kAll;
  }
  // What few terms are good for, relative to the reference.
  static __device__ __forceinline__ float largest_of_few(const FwdArgs &args, float reference) {
    return ptx::ex2(polynomial(args).few_top - reference);
  }
  // No probability is larger than the sum of all.
  __device__ __forceinline__ float limit_of_terms(const FwdArgs &args, float reference) const {
    const core::SoftcapPolynomial &f = polynomial(args);
    if (Kinds::uncapped(args) || terms != kFew) return INFINITY;
    return f.few_terms_reach(reference) ? largest_of_few(args, reference) : -1.f;
  }
};

}  // namespace flash3::device
