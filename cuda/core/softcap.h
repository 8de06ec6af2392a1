// The hyperbolic tangent of a softcap, for scores whose range is known.
#pragma once

#include <cmath>

#include "core/macros.h"

namespace flash3::core {

// outer * tanh(inner * s) as polynomials, minimax fits of tanh(x) / x in x^2: one of few terms for scores that are
// small beside the cap, as most are, since every term is an instruction for every score; and one of more terms.
struct SoftcapPolynomial {
  // For |inner * s| < 1: y * (terms[0] + terms[1] * y^2 + ..) with y = twice_inner * s; relative error 6e-7.
  static constexpr int kTerms = 6;
  float twice_inner;
  float terms[kTerms];
  // For |s| < few_limit, where |inner * s| < 0.35: s * (few[0] + few[1] * s^2 + ..); relative error 3e-6. It grows with
  // inner * s everywhere, so what comes out tells which scores it was good for: from -few_top to few_top. The limit is
  // 0 where float32 does not hold the factors, or few_top is so small that probabilities do not vanish below -few_top.
  static constexpr int kFewTerms = 3;
  float few_limit;
  float few_top;
  float few[kFewTerms];
  // A probability of 2^-kVanishing is rounded away beside the largest one, and what is wrong with it even more so.
  static constexpr float kVanishing = 12.f;

  static SoftcapPolynomial make(float inner, float outer) {
    constexpr double kFit[kTerms] = {0.9999994135969816,    -0.3332904236737747,  0.1328143379266126,
                                     -0.051605671558155965, 0.016743112289162327, -0.003067059222384168};
    constexpr double kFewFit[kFewTerms] = {0.99999713, -0.33290954, 0.12395031};
    constexpr double kFewRange = 0.35;
    SoftcapPolynomial p;
    p.twice_inner = 2 * inner;
    double scale = outer / 2.;
    for (int k = 0; k < kTerms; ++k, scale /= 4) p.terms[k] = static_cast<float>(kFit[k] * scale);
    p.few_limit = static_cast<float>(kFewRange / std::fabs(inner));
    scale = double{outer} * inner;
    for (int k = 0; k < kFewTerms; ++k, scale *= double{inner} * inner) {
      p.few[k] = static_cast<float>(kFewFit[k] * scale);
      if (!std::isnormal(p.few[k])) p.few_limit = 0.f;
    }
    p.few_top = static_cast<float>(outer * std::tanh(kFewRange));
    if (!(p.few_top > kVanishing / 2)) p.few_limit = 0.f;
    return p;
  }

  // For |inner * s| < 1. `y` is twice_inner * s.
  FLASH3_HD float of_all_terms(float y, float subtracted) const { return evaluate<kTerms>(terms, y, subtracted); }
  // For |s| < few_limit. In a row with that reference, which is the value of one of its scores, it does for all scores
  // of which none comes out above few_top, if few_terms_reach(): those below -few_top vanish beside the reference, and
  // are not made larger than they are.
  FLASH3_HD bool few_terms_reach(float reference) const { return reference + few_top >= kVanishing; }
  FLASH3_HD float of_few_terms(float s, float subtracted) const { return evaluate<kFewTerms>(few, s, subtracted); }

 private:
  // x * (factors[0] + factors[1] * x^2 + ..) - subtracted, in one rounding less than that.
  template <int kCount>
  FLASH3_HD static float evaluate(const float (&factors)[kCount], float x, float subtracted) {
    const float xx = x * x;
    float value = factors[kCount - 1];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = kCount - 2; k >= 0; --k) value = fmaf(value, xx, factors[k]);
    return fmaf(value, x, -subtracted);
  }
};

}  // namespace flash3::core
