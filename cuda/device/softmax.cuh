// Online softmax over a warpgroup's 64 x kN scores in the wgmma accumulator layout: each thread holds two rows (r = 0,
// 1, eight rows apart), and score s[4 * j + 2 * r + c] is column 8 * j + 2 * (lane % 4) + c of row r.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "core/softcap.h"
#include "device/ptx.cuh"
#include "device/score_rows.cuh"
#include "device/turns.cuh"

namespace flash3::device {

// Exponentials are taken relative to a reference per row, which need not be the running maximum: any reference gives
// the same result as long as nothing overflows and the largest terms do not vanish.
struct OnlineSoftmax {
  // The largest sum of a thread's exponentials in one block: each of them then fits float16, with room to spare.
  static constexpr float kLargestSum = 16384.f;

  struct Pair {
    float of_row[2];
  };

  float reference[2];  // in units of log2, after the scale; -inf until the row has seen a key
  float row_sum[2];    // this thread's share of sum exp2(scale_log2 * s - reference)
  float scale_log2;

  __device__ __forceinline__ explicit OnlineSoftmax(float scale)
      : reference{-INFINITY, -INFINITY}, row_sum{0.f, 0.f}, scale_log2(scale) {}

  // Whether every row of the warp has a reference.
  __device__ __forceinline__ bool has_references() const {
    return ptx::uniform_all(reference[0] > -INFINITY && reference[1] > -INFINITY);
  }

  // Replaces the scores of a new block by exp2(scale_log2 * s - reference), the reference being the maximum so far, and
  // returns in `correction` the factor for everything accumulated before.
  template <int kS>
  __device__ __forceinline__ void update(float (&s)[kS], float (&correction)[2]) {
    raise(maxima(s), correction);
    count(s, correction);
  }

  // Of the first of a thread's two rows, where the other one does not exist.
  template <int kS>
  __device__ __forceinline__ void update_first_row(float (&s)[kS], float (&correction)[2]) {
    float top[4];
#pragma unroll
    for (int j = 0; j < kS / 4; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float &t = top[j % 2 * 2 + c];
        t = j < 2 ? s[4 * j + c] : fmaxf(t, s[4 * j + c]);
      }
    }
    raise(fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3])), 0, correction);
    exponentials(s, 0);
    row_sum[0] = row_sum[0] * correction[0] + sum_of_row(s, 0);
  }

  // The same, but where no score of a warp exceeds its row's reference by more than some headroom all references stay
  // as they are: nothing has to be corrected then, and the lanes of a row need not agree on its maximum. (So how a row
  // is rounded may depend on the other rows of its warp, which are of the same sequence, or zeros.) There is no
  // headroom in the first blocks, where `exact`: relative to the maximum of few keys the largest probabilities are
  // rounded worse, see kBlocksBefore.
  //
  // In units of log2: float16, too, holds probabilities of up to 256. Less than 8, so that it is rounded away where
  // references are so large, from 2^27 on, that float32 knows no number between them and 16 more.
  static constexpr float kHeadroom = 7.75f;
  // How many blocks are the first ones: under a mask fewer, where rows with few keys make up most of the error.
  static constexpr __device__ __forceinline__ int32_t exact_blocks(bool masked, int block_n) {
    return ((masked ? 160 : 240) + block_n - 1) / block_n;
  }
  template <int kS>
  __device__ __forceinline__ void update_lazily(float (&s)[kS], bool exact, float (&correction)[2]) {
    const float headroom = exact ? 0.f : kHeadroom;
    const Pair top = maxima(s);
    correction[0] = correction[1] = 1.f;
    const bool grows =
        top.of_row[0] * scale_log2 > reference[0] + headroom || top.of_row[1] * scale_log2 > reference[1] + headroom;
    if (__any_sync(0xffffffffu, grows)) raise(top, correction);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      exponentials(s, r);
      row_sum[r] *= correction[r];
    }
  }
  // Whether the polynomial of few terms does for a softcap of the whole warp's scores. `top`: their maxima().
  __device__ __forceinline__ bool few_terms_do(const Pair &top, const core::SoftcapPolynomial &f) const {
    bool fits = f.few_terms_grow();
#pragma unroll
    for (int r = 0; r < 2; ++r) fits &= top.of_row[r] < f.few_limit && f.few_terms_reach(reference[r]);
    return ptx::uniform_all(fits);
  }
  // update_lazily() for such scores, with the softcap in one step with the exponential.
  template <int kS>
  __device__ __forceinline__ void update_lazily(float (&s)[kS], Pair top, const core::SoftcapPolynomial &f, bool exact,
                                                float (&correction)[2]) {
    const float headroom = exact ? 0.f : kHeadroom;
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top.of_row[r] = f.of_few_terms(top.of_row[r], 0.f);
      grows |= top.of_row[r] > reference[r] + headroom;
      correction[r] = 1.f;
    }
    if (__any_sync(0xffffffffu, grows)) raise(top, correction);
#pragma unroll
    for (int i = 0; i < kS; ++i) s[i] = ptx::ex2(f.of_few_terms(s[i], reference[i / 2 % 2]));
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] *= correction[r];
  }
  // After update_lazily(): the sums of what it made of the scores, for which nobody waits.
  template <int kS>
  __device__ __forceinline__ void add(const float (&s)[kS]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] += sum_of_row(s, r);
  }

  // The same in two steps and without looking for the maximum, for a block without masked keys and rows that have a
  // reference: exponentials() of the block, then count() of its sums if all of the warp fit(). If not, the reference
  // has turned out to be too far behind, and the scores are lost. (So how a row is rounded may depend on the other rows
  // of its warp, which are of the same sequence and KV head.) A sum of NaN fits: the row is NaN whatever its reference.
  //
  // The largest probabilities of a row weigh most, and relative to the true maximum the very largest is 1, which has no
  // rounding error. Relative to the maximum of one block of 128 keys out of 512 the root mean square error is 5 %
  // larger, of two blocks 3 %: hence kBlocksBefore, except under a mask, where rows with few keys make up most of the
  // error.
  static constexpr int kBlocksBefore = 2;
  static __device__ __forceinline__ bool fit(const float (&sum)[2], const float (&limit)[2]) {
    return !(sum[0] > limit[0] || sum[1] > limit[1]);
  }
  // Where sums must not be too small either: the same bounds for both rows.
  struct Bounds {
    float most, least;
  };
  static __device__ __forceinline__ bool fit(const float (&sum)[2], const Bounds &of) {
    return !(sum[0] > of.most || sum[1] > of.most || sum[0] < of.least || sum[1] < of.least);
  }
  __device__ __forceinline__ void count(const float (&sum)[2]) {
    row_sum[0] += sum[0];
    row_sum[1] += sum[1];
  }

  // See exponentials_in_turns().
  template <class T, int kS>
  __device__ __forceinline__ void exponentials(float (&s)[kS], float (&sum)[2], uint32_t zero) const {
    const float addend[2] = {-reference[0], -reference[1]};
    exponentials_in_turns<T>(s, sum, addend, zero,
                             [&](int, float x, float of_row) { return fmaf(x, scale_log2, of_row); });
  }

  // Of one row.
  template <int kS>
  __device__ __forceinline__ void exponentials(float (&s)[kS], int r) const {
    // A row without a reference has only masked scores: relative to 0 they give exp2(-inf) = 0.
    const float shift = reference[r] == -INFINITY ? 0.f : reference[r];
#pragma unroll
    for (int j = 0; j < kS / 4; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float &x = s[4 * j + 2 * r + c];
        x = ptx::ex2(fmaf(x, scale_log2, -shift));
      }
    }
  }

  // Of a thread's scores.
  template <int kS>
  static __device__ __forceinline__ Pair maxima(const float (&s)[kS]) {
    float top[2][4];  // independent chains, so that the maximum does not wait for itself
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i / 2 % 2][i / 4 * 2 + i % 2] = s[i];
#pragma unroll
    for (int i = 8; i < kS; ++i) {
      float &t = top[i / 2 % 2][i / 4 % 2 * 2 + i % 2];
      t = fmaxf(t, s[i]);
    }
    Pair out;
#pragma unroll
    for (int r = 0; r < 2; ++r) out.of_row[r] = fmaxf(fmaxf(top[r][0], top[r][1]), fmaxf(top[r][2], top[r][3]));
    return out;
  }

  // Raises the references to the maxima of a block where these are larger; top: of the thread's new scores.
  __device__ __forceinline__ void raise(const Pair &top, float (&correction)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) raise(top.of_row[r], r, correction);
  }
  // Of one row.
  __device__ __forceinline__ void raise(float top, int r, float (&correction)[2]) {
    const float now = quad_max(top) * scale_log2;
    const bool grows = now > reference[r];
    // Exactly 1 where nothing changed: callers skip the rescaling then.
    correction[r] = grows ? ptx::ex2(reference[r] - now) : 1.f;
    reference[r] = grows ? now : reference[r];
  }

  // Exponentials of the scores and their sums.
  template <int kS>
  __device__ __forceinline__ void count(float (&s)[kS], const float (&correction)[2]) {
    float sum[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      exponentials(s, r);
      sum[r] = sum_of_row(s, r);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] = row_sum[r] * correction[r] + sum[r];
  }

  // Makes what has been accumulated relative to other references.
  template <int kO>
  __device__ __forceinline__ void refer_to(const Pair &to, float (&o)[kO]) {
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      correction[r] = ptx::ex2(reference[r] - to.of_row[r]);
      reference[r] = to.of_row[r];
      row_sum[r] *= correction[r];
    }
    rescale(o, correction);
  }
  // To the sums so far, beside which those of the rows' exponentials are 1 then.
  template <int kO>
  __device__ __forceinline__ void refer_to_sums(float (&o)[kO]) {
    Pair to;
#pragma unroll
    for (int r = 0; r < 2; ++r) to.of_row[r] = reference[r] + ptx::lg2(quad_sum(row_sum[r]));
    refer_to(to, o);
  }

  // Row maxima settle after a few blocks; from then on the factor is 1 nearly always.
  template <int kO>
  static __device__ __forceinline__ void rescale(float (&o)[kO], const float (&correction)[2]) {
    if (ptx::uniform_all(correction[0] == 1.f && correction[1] == 1.f)) return;
#pragma unroll
    for (int i = 0; i < kO; ++i) o[i] *= correction[(i / 2) % 2];
  }

  // What is left to do for the rows. A sink (-inf: none) is one more logit without a value.
  struct Sinks {
    float of_row[2];
  };
  // Without sinks: the same result in fewer steps.
  __device__ __forceinline__ RowResults finish() const {
    RowResults out;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(row_sum[r]);
      out.empty[r] = sum == 0.f && reference[r] == -INFINITY;
      out.lse[r] = {reference[r], sum};  // without a key -inf and 0, which give -inf
      out.factor[r] = ptx::rcp(sum);
    }
    return out;
  }
  __device__ __forceinline__ RowResults finish(const Sinks &sinks) const {
    RowResults out;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowResult row = finish_row(reference[r], quad_sum(row_sum[r]), sinks.of_row[r]);
      out.lse[r] = row.lse;
      out.factor[r] = row.factor;
      out.empty[r] = row.empty;
    }
    return out;
  }
};

}  // namespace flash3::device
