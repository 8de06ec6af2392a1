// float16 and bfloat16 to float32 and back, round to nearest even, in integer arithmetic that every compiler
// vectorises. `static`: the files that include this are compiled for different instruction sets, so none of these
// functions may be merged with another file's copy.
#pragma once

#include <cstdint>
#include <cstring>

namespace flash3::host {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

static inline float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

static inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

static inline float to_float(float x) { return x; }

static inline float to_float(BFloat16 x) { return float_from_bits(static_cast<uint32_t>(x.bits) << 16); }

static inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // Moves the exponent's bias from 15 to 127 and normalises subnormals; infinity and NaN need the widest exponent.
  const uint32_t scaled = bits_of(float_from_bits(magnitude) * 0x1p112f);
  const uint32_t widest = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return float_from_bits(scaled | widest | sign);
}

static inline void from_float(float x, float *out) { *out = x; }

static inline void from_float(float x, BFloat16 *out) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>((nan ? bits | 0x00400000u : rounded) >> 16);
}

static inline void from_float(float x, Float16 *out) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 makes the hardware round at 2^-24
    half = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
}

}  // namespace flash3::host
