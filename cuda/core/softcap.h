// The hyperbolic tangent of a softcap, for scores whose range is known.
#pragma once

#include <cmath>

#include "core/constants.h"
#include "core/macros.h"

namespace flash3::core {

// outer * tanh(inner * s) as polynomials, minimax fits of tanh(x) / x in x^2: one of few terms for scores that are
// small beside the cap, as most are, since every term is an instruction for every score; and one of more terms.
struct SoftcapPolynomial {
  // For |inner * s| < 1: y * (terms[0] + terms[1] * y^2 + ..) with y = twice_inner * s; relative error 6e-7.
  static constexpr int kTerms = 6;
  float twice_inner;
  float terms[kTerms];
  // For |s| < few_limit, where |inner * s| < 0.35: s * ((s^2 + few_shift)^2 + few_offset) * few_factor; relative error
  // 3e-6. It grows with inner * s everywhere, so what comes out tells which scores it was good for: from -few_top to
  // few_top. The limit is 0 where float32 does not hold the factors, or few_top is so small that probabilities do not
  // vanish below -few_top. (A square completed takes as many steps as nested products, but each reads one or two
  // registers beside what is the same for all scores, and none three.)
  float few_limit;
  float few_top;
  float few_shift, few_offset, few_factor;
  // A probability of 2^-kVanishing is rounded away beside the largest one, and what is wrong with it even more so.
  static constexpr float kVanishing = 12.f;

  static SoftcapPolynomial make(float inner, float outer) {
    constexpr double kFit[kTerms] = {0.9999994135969816,    -0.3332904236737747,  0.1328143379266126,
                                     -0.051605671558155965, 0.016743112289162327, -0.003067059222384168};
    constexpr double kFewFit[3] = {0.99999713, -0.33290954, 0.12395031};
    constexpr double kFewRange = 0.35;
    SoftcapPolynomial p;
    p.twice_inner = 2 * inner;
    double scale = outer / 2.;
    for (int k = 0; k < kTerms; ++k, scale /= 4) p.terms[k] = static_cast<float>(kFit[k] * scale);
    const double square = double{inner} * inner;
    const double shift = kFewFit[1] / (2 * kFewFit[2]);  // of x^2
    const double offset = kFewFit[0] / kFewFit[2] - shift * shift;
    p.few_limit = static_cast<float>(kFewRange / std::fabs(inner));
    p.few_shift = static_cast<float>(shift / square);
    p.few_offset = static_cast<float>(offset / (square * square));
    p.few_factor = static_cast<float>(kFewFit[2] * outer * inner * square * square);
    // The largest product on the way: few_shift is below 0, and |s|^2 smaller than it.
    const float largest = p.few_limit * (p.few_shift * p.few_shift + p.few_offset);
    if (!std::isnormal(p.few_factor) || !std::isfinite(largest)) p.few_limit = 0.f;
    p.few_top = static_cast<float>(outer * std::tanh(kFewRange));
    if (!(p.few_top > kVanishing / 2)) p.few_limit = 0.f;
    return p;
  }

  // Of a call; without a softcap nobody asks for more than zeros.
  static SoftcapPolynomial of_call(float softmax_scale, float softcap) {
    return softcap > 0 ? make(softmax_scale / softcap, softcap * kLog2e) : SoftcapPolynomial{};
  }

  // Whether there is one of few terms, and a larger score comes out larger.
  FLASH3_HD bool few_terms_grow() const { return few_limit > 0.f && twice_inner > 0.f; }

  // For |inner * s| < 1. `y` is twice_inner * s.
  FLASH3_HD float of_all_terms(float y, float subtracted) const {
    const float yy = y * y;
    float value = terms[kTerms - 1];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = kTerms - 2; k >= 0; --k) value = fmaf(value, yy, terms[k]);
    return fmaf(value, y, -subtracted);
  }
  // For |s| < few_limit. In a row with that reference, which is the value of one of its scores, it does for all scores
  // of which none comes out above few_top, if few_terms_reach(): those below -few_top vanish beside the reference, and
  // are not made larger than they are.
  FLASH3_HD bool few_terms_reach(float reference) const { return reference + few_top >= kVanishing; }
  FLASH3_HD float of_few_terms(float s, float subtracted) const {
    const float shifted = fmaf(s, s, few_shift);
    return fmaf(s * fmaf(shifted, shifted, few_offset), few_factor, -subtracted);
  }
};

}  // namespace flash3::core
