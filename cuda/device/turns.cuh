// The order in which the exponentials of a block of scores are taken, and added up.
#pragma once

#include <cstdint>

#include "device/ptx.cuh"

namespace flash3::device {

// Which scores have their exponentials taken together, and in which order.
//
// Left to itself the compiler puts all that comes in front of an exponential in front of all of them, and the units for
// the one stand still while those for the other work. So a turn of scores has to wait for the sums of the turn before
// the last one.
//
// kByRow: a turn has scores of one row, and its sum is added up behind that of the turn before, so that the compiler
// keeps that order. What the scores of a row have in common is then read from its register once, not for each of them:
// the products that run at the same time need the registers, too.
template <int kScores_, bool kByRow_>
struct Turns {
  static constexpr int kScores = kScores_;
  static constexpr bool kByRow = kByRow_;

  // The place of score k of a turn.
  static __device__ __forceinline__ constexpr int place(int turn, int k) {
    if (!kByRow) return turn * kScores + k;
    return turn / 2 * 2 * kScores + k / 2 * 4 + turn % 2 * 2 + k % 2;
  }
};

// s[i] = exp2(f(i, s[i], of_row[row of i])), and the sums of the rows. `zero`: see ptx::after().
template <class T, int kS, class F>
__device__ __forceinline__ void exponentials_in_turns(float (&s)[kS], float (&sum)[2], const float (&of_row)[2],
                                                      uint32_t zero, F f) {
  constexpr int kTurns = kS / T::kScores;
  static_assert(T::kByRow ? kS % (2 * T::kScores) == 0 : T::kScores % 4 == 0 && kS % T::kScores == 0,
                "a turn has scores of both rows, or there are as many turns for either");
  float x[2] = {of_row[0], of_row[1]};
  sum[0] = sum[1] = 0.f;
#pragma unroll
  for (int turn = 0; turn <= kTurns; ++turn) {
    if (turn < kTurns) {
#pragma unroll
      for (int k = 0; k < T::kScores; ++k) {
        const int i = T::place(turn, k);
        s[i] = ptx::ex2(f(i, s[i], x[i / 2 % 2]));
      }
    }
    if (turn == 0) continue;
    // Those of the turn before are there while these are under way.
    if (T::kByRow && turn > 1) sum[(turn - 1) % 2] = ptx::after(sum[turn % 2], sum[(turn - 1) % 2], zero);
#pragma unroll
    for (int k = 0; k < T::kScores; ++k) {
      const int i = T::place(turn - 1, k);
      sum[i / 2 % 2] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!T::kByRow || r == (turn - 1) % 2) x[r] = ptx::after(sum[r], x[r], zero);
    }
  }
}

}  // namespace flash3::device
