// The cheapest polynomial of a softcap, for scores of a Q that has been multiplied by a power of two.
#pragma once

#include <cmath>

#include "core/constants.h"
#include "core/macros.h"
#include "core/softcap.h"

namespace flash3::core {

// s * ((s^2 + shift)^2 + offset) has no factor of its own, hence three instructions a score: products are made q_factor
// times as large, a power of two, such that the fifth power of a score has nearly the coefficient that tanh has. It
// need not be exactly that: what is wrong with it the other two make up for, within a range that is the smaller the
// more it is wrong. (tanh x = x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315 ..; the best fit of a fifth power by lower ones
// is what the fifth Chebyshev polynomial has of them, and its error the polynomial itself.)
//
// What comes of a score is exp2() of it, relative to 0 and not to a maximum, which would be one more register to read.
struct MonicSoftcap {
  SoftcapPolynomial scaled;  // of products times q_factor
  float q_factor;            // 1 where there is no such polynomial
  float shift, offset;
  // It does for probabilities (relative to 0) that are not larger than this, since larger scores give larger ones. 0:
  // there is no such polynomial.
  float largest;
  // And if their mean is not less than this: negative scores beyond the range are wrong by so little, and probabilities
  // there so small, that the log-sum-exp changes by no more than kBelow.
  float least_mean;

  // Largest errors of the log-sum-exp, in natural units: of scores within the range, and below it.
  static constexpr double kWithin = 6e-5, kBelow = 2e-5;
  // It is of use only beside a reference (in units of log2) that is not far from 0.
  static constexpr float kFarthest = 32.f;

  // outer * tanh(inner * s), in units of log2.
  static MonicSoftcap make(float inner, float outer) {
    MonicSoftcap p = {SoftcapPolynomial::make(inner, outer), 1.f, 0.f, 0.f, 0.f, 0.f};
    const double cap = outer * double{kLn2};
    if (!(inner > 0 && cap > kSmallestCap && cap < kLargestCap)) return p;
    const double fifth_power = outer * std::pow(double{inner}, 5);
    const double exponent = std::ceil(std::log2(kSmallestLead * fifth_power) / 5);
    if (!(exponent <= 0 && exponent >= kLeastExponent)) return p;
    const double factor = std::exp2(exponent);
    const Fit fit = Fit::make(cap, std::pow(factor, 5) / fifth_power);
    const double top = fit.value(fit.end) * kLog2e;
    const double least_mean = std::exp2(fit.below()) / kBelow;
    if (!(top >= kSmallestTop && least_mean <= kMostMean)) return p;

    const double scaled_inner = inner / factor, square = scaled_inner * scaled_inner;
    const double fit_shift = fit.c1 / (2 * fit.c2);
    p.scaled = SoftcapPolynomial::make(static_cast<float>(scaled_inner), outer);
    p.q_factor = static_cast<float>(factor);
    p.shift = static_cast<float>(fit_shift / square);
    p.offset = static_cast<float>((fit.c0 / fit.c2 - fit_shift * fit_shift) / (square * square));
    p.largest = static_cast<float>(std::exp2(std::fmin(top, kLargestTop)));
    p.least_mean = std::fmax(static_cast<float>(least_mean), std::exp2(-2.f * kFarthest));
    return p;
  }
  // Of a call; without a softcap nobody asks for more than zeros.
  static MonicSoftcap of_call(float softmax_scale, float softcap) {
    return softcap > 0 ? make(softmax_scale / softcap, softcap * kLog2e) : MonicSoftcap{};
  }

  FLASH3_HD bool exists() const { return largest > 0.f; }
  FLASH3_HD float value(float s) const { return value(s, shift); }
  // The same with `shift` in a register.
  FLASH3_HD float value(float s, float shift_) const {
    const float shifted = fmaf(s, s, shift_);
    return s * fmaf(shifted, shifted, offset);
  }

 private:
  static constexpr double kSmallestCap = 1, kLargestCap = 1e4;
  static constexpr double kLeastExponent = -16;  // which leaves Q far from the smallest bfloat16
  // Nobody tries what is not good enough for random scores, of which the probabilities of a few dozen add up to less
  // than 2^kSmallestTop, and have a mean of more than 1.
  static constexpr double kSmallestTop = 8, kMostMean = 0.5;
  // Sums and outputs, which are relative to 0, stay far from the largest float32.
  static constexpr double kLargestTop = 20;
  // With a smaller coefficient of the fifth power, a large score could come out below the range's end.
  static constexpr double kSmallestLead = 0.037;

  // cap * x * (c0 + c1 * x^2 + c2 * x^4) for cap * tanh(x), up to `end`, in natural units.
  struct Fit {
    double cap, c0, c1, c2, end;

    static Fit make(double cap, double c2) {
      constexpr double kSeventh = 17. / 315;
      const double off = 2. / 15 - c2;
      double begin = 0, end = 0.35;
      for (int i = 0; i < 16; ++i) {
        const double x = (begin + end) / 2, x2 = x * x, x5 = x2 * x2 * x;
        const double error = cap * (std::fabs(off) / 16 + (1.75 / 16 + 1. / 64) * kSeventh * x2) * x5;
        (error <= kWithin ? begin : end) = x;
      }
      const double square = begin * begin;
      const double c1 = -1. / 3 + (1.25 * off - 1.3125 * kSeventh * square) * square;
      const double c0 = 1 - (0.3125 * off - 0.4375 * kSeventh * square) * square * square;
      return {cap, c0, c1, c2, begin};
    }

    double value(double x) const { return cap * x * (c0 + x * x * (c1 + x * x * c2)); }

    // log2 of the largest error of a probability of a score below the range, relative to 0. There the error of the
    // exponent grows as the Chebyshev polynomial does; from 1 on nothing is left but the probability itself.
    double below() const {
      constexpr double kStep = 1.08;
      const double dips = c1 * c1 * 9 - 20 * c0 * c2;  // where it does not grow everywhere, down to a smallest value
      const double dip = dips > 0 ? std::sqrt((std::sqrt(dips) - 3 * c1) / (10 * c2)) : 1;
      double worst = -std::fmin(std::fmin(value(1), value(dip)), cap * std::tanh(1.)) * kLog2e;
      for (double z = 1; z * end < 1; z *= kStep) {
        // ... of an argument between this one and the next
        const double x = z * end, next = z * kStep, square = next * next;
        const double error = std::fmin(1., kWithin * next * (5 - 20 * square + 16 * square * square));
        worst = std::fmax(worst, std::log2(error) - std::fmin(value(x), cap * (x - x * x * x / 3)) * kLog2e);
      }
      return worst;
    }
  };
};

}  // namespace flash3::core
