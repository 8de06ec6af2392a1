// What happens to scores between the product Q * K^T and the softmax: softcap, ALiBi and the mask. See softmax.cuh for
// the layout of a thread's scores.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "core/mask.h"
#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/softmax.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

using core::kLog2e;

// tanh with a relative error near 1e-7, so that a large softcap does not magnify it: tanh.approx (2^-11) would show in
// float16 results. Through exp2, and near 0, where that cancels, by the first terms of the series.
__device__ __forceinline__ float tanh_accurate(float x) {
  const float large = 1.f - 2.f * ptx::rcp(1.f + ptx::ex2(x * (2.f * kLog2e)));
  const float xx = x * x;
  const float small = x * fmaf(xx, fmaf(xx, 2.f / 15.f, -1.f / 3.f), 1.f);
  return fabsf(x) < 0.08f ? small : large;
}

// The largest |score| of a thread; NaN counts as little where there are others.
template <int kS>
__device__ __forceinline__ float largest_magnitude(const float (&s)[kS]) {
  float top[4] = {fabsf(s[0]), fabsf(s[1]), fabsf(s[2]), fabsf(s[3])};  // independent chains
#pragma unroll
  for (int i = 4; i < kS; ++i) top[i % 4] = fmaxf(top[i % 4], fabsf(s[i]));
  return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
}

// The slope of a tile's head in units of log2; 0 without ALiBi.
__device__ __forceinline__ float alibi_slope(const FwdArgs &args, const WorkTile &tile) {
  if (args.alibi_slopes == nullptr) return 0.f;
  return args.alibi_slopes[tile.batch * args.alibi_batch_stride + tile.head] * kLog2e;
}

// One score from the product of a query and a key at that distance from the diagonal, in units of log2.
__device__ __forceinline__ float modified_score(float product, const FwdArgs &args, float slope_log2,
                                                int64_t distance) {
  const float x = args.softcap > 0.f ? args.softcap * kLog2e * tanh_accurate(product * (args.scale / args.softcap))
                                     : product * args.scale_log2;
  return fmaf(-slope_log2, fabsf(static_cast<float>(distance)), x);
}

// What a kernel may meet of these: anything of a call's arguments, or a softcap and nothing else. kScaled: products
// have been multiplied by core::MonicSoftcap::q_factor.
struct AnyScores {
  static constexpr bool kScaled = false;
  template <class Args>
  static __device__ __forceinline__ bool capped(const Args &args) {
    return args.softcap > 0.f;
  }
  static __device__ __forceinline__ bool uncapped(const FwdArgs &args) { return args.softcap <= 0.f; }
  template <class Args>
  static __device__ __forceinline__ bool biased(const Args &args) {
    return args.alibi_slopes != nullptr;
  }
  template <class Args>
  static __device__ __forceinline__ const core::SoftcapPolynomial &polynomial(const Args &args) {
    return args.softcap_polynomial;
  }
  template <class Args>
  static __device__ __forceinline__ float inner(const Args &args) {
    return args.scale / args.softcap;
  }
};
template <bool kScaled_>
struct CappedScores {
  static constexpr bool kScaled = kScaled_;
  static __device__ __forceinline__ constexpr bool capped(const FwdArgs &) { return true; }
  static __device__ __forceinline__ constexpr bool uncapped(const FwdArgs &) { return false; }
  static __device__ __forceinline__ constexpr bool biased(const FwdArgs &) { return false; }
  static __device__ __forceinline__ const core::SoftcapPolynomial &polynomial(const FwdArgs &args) {
    return kScaled ? args.monic_softcap.scaled : args.softcap_polynomial;
  }
  static __device__ __forceinline__ float inner(const FwdArgs &args) { return polynomial(args).twice_inner * 0.5f; }
};

// The two rows of one thread: their mask as key ranges, and what the score modifications need. Made where it is used
// and not kept, since registers are short in the main loop.
struct RowScores {
  int32_t key_begin[2], key_end[2];  // visible keys of each row
  int64_t diagonal[2];               // key under the diagonal; ALiBi measures distances from it
  float alibi_slope_log2[2];
  int lane;

  __device__ __forceinline__ RowScores() : lane(threadIdx.x % 32) {}

  // first_row: of the warp, in the sequence.
  __device__ __forceinline__ RowScores(const FwdArgs &args, const WorkTile &tile, int64_t first_row, float slope)
      : alibi_slope_log2{slope, slope}, lane(threadIdx.x % 32) {
    const core::Mask mask{args.window, tile.seqlen_q, tile.seqlen_k};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = first_row + lane / 4 + 8 * r;
      const auto near_row = static_cast<int32_t>(min(row, int64_t{INT32_MAX}));  // behind it no sequence has rows
      key_begin[r] = mask.key_begin(near_row);
      key_end[r] = mask.key_end(near_row);
      diagonal[r] = mask.diagonal(row);
    }
  }

  // Softcap and ALiBi on the scores of the block that starts at key `first_key`; the result is in units of log2.
  template <class Kinds = AnyScores, int kS, class Args>
  __device__ __forceinline__ void modify(float (&s)[kS], const Args &args, int first_key) const {
    if (Kinds::capped(args) && ptx::uniform_all(largest_magnitude(s) < Kinds::polynomial(args).few_limit)) {
#pragma unroll
      for (int i = 0; i < kS; ++i) s[i] = Kinds::polynomial(args).of_few_terms(s[i], 0.f);
    } else if (Kinds::capped(args)) {
      const float inner = Kinds::inner(args);
      const float outer = args.softcap * kLog2e;
#pragma unroll
      for (int i = 0; i < kS; ++i) s[i] = outer * tanh_accurate(s[i] * inner);
    } else {
#pragma unroll
      for (int i = 0; i < kS; ++i) s[i] *= args.scale_log2;
    }
    if (Kinds::biased(args)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        // As integers: a float holds positions only up to 2^24.
        const float distance = static_cast<float>(diagonal[r] - (first_key + 2 * (lane % 4)));
#pragma unroll
        for (int j = 0; j < kS / 4; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float &x = s[4 * j + 2 * r + c];
            x = fmaf(-alibi_slope_log2[r], fabsf(distance - static_cast<float>(8 * j + c)), x);
          }
        }
      }
    }
  }
};

// The softcap and OnlineSoftmax::update_lazily() of a block without a mask in one step, for kernels that look for
// maxima: if there is no ALiBi, and the polynomial of few terms does for the whole warp. Returns whether.
template <int kS>
__device__ __forceinline__ bool update_capped(float (&s)[kS], const FwdArgs &args, float alibi_slope, bool exact,
                                              OnlineSoftmax &softmax, float (&correction)[2]) {
  if (!(args.softcap > 0.f && alibi_slope == 0.f)) return false;
  const core::SoftcapPolynomial &f = args.softcap_polynomial;
  const OnlineSoftmax::Pair top = OnlineSoftmax::maxima(s);
  if (!softmax.few_terms_do(top, f)) return false;
  softmax.update_lazily(s, top, f, exact, correction);
  return true;
}

// Bit 2 * j + c: whether column 8 * j + 2 * (lane % 4) + c, the place of score s[4 * j + 2 * r + c], is below `end`.
template <int kS>
__device__ __forceinline__ uint32_t scores_before(int end) {
  static_assert(kS / 2 <= 32, "a bit for each of a row's scores");
  const auto own = static_cast<uint32_t>(max(end - 2 * static_cast<int>(threadIdx.x % 4), 0));
  return ptx::low_bits(own / 8 * 2 + min(own % 8, 2u));
}

// -inf for every key of row r that is not in [begin, end), counted from the first one of the block.
template <int kS>
__device__ __forceinline__ void mask_row(float (&s)[kS], int r, int begin, int end, bool has_left) {
  uint32_t visible = scores_before<kS>(end);
  if (has_left) visible &= ~scores_before<kS>(begin);
#pragma unroll
  for (int j = 0; j < kS / 4; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if ((visible >> (2 * j + c) & 1) == 0) s[4 * j + 2 * r + c] = -INFINITY;
    }
  }
}

// The same for all rows of a warp. `block` counts queries from the first one, and query_of(row) is that of a row.
template <int kS, class QueryOf>
__device__ __forceinline__ void mask_scores(float (&s)[kS], const core::BlockMask &block, bool has_left,
                                            QueryOf query_of) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = query_of(threadIdx.x % 32 / 4 + 8 * r);
    mask_row(s, r, block.key_begin(row), block.key_end(row), has_left);
  }
}
template <int kS>
__device__ __forceinline__ void mask_scores(float (&s)[kS], const core::BlockMask &block, bool has_left) {
  mask_scores(s, block, has_left, [](int row) { return row; });
}

}  // namespace flash3::device
