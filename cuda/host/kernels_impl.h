// The bodies of kernels.h, for the instruction set that the including file is compiled for. That file defines
//   FLASH3_VECTOR_BYTES   width of a vector register
//   FLASH3_GROUP_VECTORS  registers across the rows of a group
//   FLASH3_REGISTER_ROWS  rows of the register block: FLASH3_REGISTER_ROWS x FLASH3_GROUP_VECTORS accumulators
// Groups of one vector have their own register block, 8 x 1.
// Everything is in an anonymous namespace and nothing of the standard library is called: the linker must never take a
// function from here, with its wide instructions, for another file.
#pragma once

#include <cstdint>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "flash3.h"
#include "host/convert.h"
#include "host/kernels.h"

namespace flash3::host {
namespace {

// may_alias: buffers are filled as plain floats.
using vfloat = float __attribute__((vector_size(FLASH3_VECTOR_BYTES), may_alias));
using vint = int32_t __attribute__((vector_size(FLASH3_VECTOR_BYTES), may_alias));

constexpr int32_t kLanes = FLASH3_VECTOR_BYTES / 4;
constexpr int32_t kGroupRows = kLanes * FLASH3_GROUP_VECTORS;
constexpr int32_t kNarrowRows = kLanes;
static_assert(kGroupRows <= kMaxGroupRows, "the row state of a group is an array of kMaxGroupRows");

constexpr float kInfinity = __builtin_inff();

inline vfloat splat(float x) { return vfloat{} + x; }

// e^x for x <= 0, -inf or NaN: within 2 units in the last place, 0 below -87.3 (where float32 has no normal result).
// Range reduction and polynomial of Cephes' expf.
inline vfloat exp_nonpositive(vfloat x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const vfloat shifted = x * 1.44269504f + kRound;
  const vfloat n = shifted - kRound;
  const vfloat r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vfloat p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  using vuint = uint32_t __attribute__((vector_size(FLASH3_VECTOR_BYTES)));
  const vuint exponent = ((vuint)shifted + 127u) << 23;
  return x < -87.3f ? splat(0.0f) : p * (vfloat)exponent;  // NaN compares false and stays NaN in p
}

inline vfloat absolute(vfloat x) { return (vfloat)((vint)x & 0x7fffffff); }

// Polynomial of Cephes' tanhf near 0, where 1 - exp would cancel.
inline vfloat tanh(vfloat x) {
  const vfloat a = absolute(x);
  const vfloat e = exp_nonpositive(a * -2.0f);
  const vfloat far = (1.0f - e) / (1.0f + e);
  const vfloat z = x * x;
  vfloat p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const vfloat near = p * z * x + x;
  return a < 0.625f ? near : (vfloat)((vint)far | ((vint)x & INT32_MIN));
}

// c(i, :) = c(i, :) * correction + sum over t of a(i, t) * b(t, :), for c (count_i, rows) and b (count_t, rows).
// Without correction, c is only written. a(i, t) lies at i * stride + t, or at i + t * stride if kTransposed.
template <int32_t kVectors, int32_t kRegisterRows, bool kTransposed>
inline void multiply(const float *a, int64_t stride, int32_t count_i, int32_t count_t, const vfloat *b,
                     const vfloat *correction, vfloat *c) {
  static_assert(8 % kRegisterRows == 0 && kBlockN % 8 == 0, "head dims and key blocks must be whole register blocks");
  for (int32_t i = 0; i < count_i; i += kRegisterRows) {
    vfloat sum[kRegisterRows][kVectors];
#pragma GCC unroll 8
    for (int32_t r = 0; r < kRegisterRows; ++r) {
#pragma GCC unroll 8
      for (int32_t v = 0; v < kVectors; ++v) {
        sum[r][v] = correction != nullptr ? c[(i + r) * kVectors + v] * correction[v] : splat(0.0f);
      }
    }
    const float *column = a + (kTransposed ? i : i * stride);
    const vfloat *row = b;
    for (int32_t t = 0; t < count_t; ++t) {
#pragma GCC unroll 8
      for (int32_t r = 0; r < kRegisterRows; ++r) {
        const vfloat x = splat(column[kTransposed ? r : r * stride]);
#pragma GCC unroll 8
        for (int32_t v = 0; v < kVectors; ++v) sum[r][v] += x * row[v];
      }
      column += kTransposed ? stride : 1;
      row += kVectors;
    }
#pragma GCC unroll 8
    for (int32_t r = 0; r < kRegisterRows; ++r) {
#pragma GCC unroll 8
      for (int32_t v = 0; v < kVectors; ++v) c[(i + r) * kVectors + v] = sum[r][v];
    }
  }
}

// s = the logits of spec: scaled, capped, biased, -inf where invisible. Raises row_max to their maximum.
template <int32_t kVectors, bool kMasked, bool kBiased>
inline void finish_scores(const Group &group, const KeyBlock &block, const ScoreOptions &options, vfloat *s,
                          vfloat *row_max) {
  const auto *key_begin = reinterpret_cast<const vint *>(group.key_begin);
  const auto *key_end = reinterpret_cast<const vint *>(group.key_end);
  const auto *diagonal = reinterpret_cast<const vint *>(group.diagonal);
  const auto *slope = reinterpret_cast<const vfloat *>(group.alibi_slope);
  for (int32_t n = 0; n < block.keys; ++n) {
    const int32_t key = block.first_key + n;
    for (int32_t v = 0; v < kVectors; ++v) {
      vfloat x = s[n * kVectors + v] * options.scale;
      if (kBiased && options.softcap > 0.0f) x = options.softcap * tanh(x / options.softcap);
      if (kBiased && options.alibi) {
        x -= slope[v] * absolute(__builtin_convertvector(diagonal[v] - key, vfloat));
      }
      // A choice, not arithmetic: an invisible key may hold NaN.
      if (kMasked) x = ((key_begin[v] <= key) & (key < key_end[v])) != 0 ? x : splat(-kInfinity);
      s[n * kVectors + v] = x;
      row_max[v] = x > row_max[v] ? x : row_max[v];
    }
  }
}

// s -> exp(s - row_max), its sum, and the correction of what was summed under the old maximum.
template <int32_t kVectors>
inline void exponentiate(int32_t keys, const vfloat *new_max, vfloat *s, vfloat *row_max, vfloat *row_sum,
                         vfloat *correction) {
  vfloat shift[kVectors];
  vfloat sum[kVectors];
  for (int32_t v = 0; v < kVectors; ++v) {
    shift[v] = new_max[v] == -kInfinity ? splat(0.0f) : new_max[v];  // nothing visible yet: no -inf - -inf
    correction[v] = row_max[v] == new_max[v] ? splat(1.0f) : exp_nonpositive(row_max[v] - shift[v]);
    sum[v] = splat(0.0f);
  }
  for (int32_t n = 0; n < keys; ++n) {
    for (int32_t v = 0; v < kVectors; ++v) {
      const vfloat p = exp_nonpositive(s[n * kVectors + v] - shift[v]);
      s[n * kVectors + v] = p;
      sum[v] += p;
    }
  }
  for (int32_t v = 0; v < kVectors; ++v) {
    row_sum[v] = row_sum[v] * correction[v] + sum[v];
    row_max[v] = new_max[v];
  }
}

template <int32_t kVectors, int32_t kRegisterRows>
void update_group(const Group &group, const KeyBlock &block, const ScoreOptions &options) {
  auto *s = reinterpret_cast<vfloat *>(group.probabilities);
  auto *row_max = reinterpret_cast<vfloat *>(group.row_max);
  const int32_t padded = (block.keys + kRegisterRows - 1) / kRegisterRows * kRegisterRows;
  multiply<kVectors, kRegisterRows, false>(block.k, options.head_dim, padded, options.head_dim,
                                           reinterpret_cast<const vfloat *>(group.q), nullptr, s);
  vfloat new_max[kVectors];
  for (int32_t v = 0; v < kVectors; ++v) new_max[v] = row_max[v];
  const bool biased = options.softcap > 0.0f || options.alibi;
  const auto finish =
      biased ? (block.masked ? finish_scores<kVectors, true, true> : finish_scores<kVectors, false, true>)
             : (block.masked ? finish_scores<kVectors, true, false> : finish_scores<kVectors, false, false>);
  finish(group, block, options, s, new_max);
  vfloat correction[kVectors];
  exponentiate<kVectors>(block.keys, new_max, s, row_max, reinterpret_cast<vfloat *>(group.row_sum), correction);
  multiply<kVectors, kRegisterRows, true>(block.v, options.head_dim_v, options.head_dim_v, block.keys, s, correction,
                                          reinterpret_cast<vfloat *>(group.out));
}

void update(const Group &group, const KeyBlock &block, const ScoreOptions &options) {
  if (group.width == kNarrowRows) {
    update_group<1, 8>(group, block, options);
  } else {
    update_group<FLASH3_GROUP_VECTORS, FLASH3_REGISTER_ROWS>(group, block, options);
  }
}

// Eight float16 at once where there is an instruction for it.
inline void to_floats(const Float16 *from, float *to) {
#if defined(__F16C__)
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
#else
  for (int32_t j = 0; j < 8; ++j) to[j] = to_float(from[j]);
#endif
}

template <class Element>
inline void to_floats(const Element *from, float *to) {
  for (int32_t j = 0; j < 8; ++j) to[j] = to_float(from[j]);
}

template <class Element>
bool load(const void *src, int64_t row_stride, int32_t rows, int32_t columns, float *dst) {
  uint32_t special = 0;
  for (int32_t i = 0; i < rows; ++i) {
    const Element *from = static_cast<const Element *>(src) + i * row_stride;
    float *to = dst + int64_t{i} * columns;
    for (int32_t j = 0; j < columns; j += 8) to_floats(from + j, to + j);  // head dims are multiples of 8
    for (int32_t j = 0; j < columns; ++j) special |= is_finite(to[j]) ? 0u : 1u;
  }
  return special == 0;
}

bool load_rows(int32_t dtype, const void *src, int64_t row_stride, int32_t rows, int32_t columns, float *dst) {
  switch (dtype) {
    case FLASH3_FLOAT16:
      return load<Float16>(src, row_stride, rows, columns, dst);
    case FLASH3_BFLOAT16:
      return load<BFloat16>(src, row_stride, rows, columns, dst);
    default:
      return load<float>(src, row_stride, rows, columns, dst);
  }
}

}  // namespace
}  // namespace flash3::host
