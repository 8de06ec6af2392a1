// Division by a number that many divisions share, without dividing: a GPU takes some 25 instructions for each division,
// which count where a kernel begins and no code is in a cache yet.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace flash3::core {

// n / divisor for n below 2^31, as n * ceil(2^s / divisor) >> s with the smallest 2^(s - 31) that is not below the
// divisor: the multiplier is below 2^32 then, and too large by so little that no quotient changes.
struct Divisor {
  uint32_t divisor, multiplier, shift;

  static Divisor make(int64_t divisor) {
    const auto d = static_cast<uint32_t>(divisor > 0 ? divisor : 1);
    uint32_t s = 31;
    while ((uint64_t{1} << (s - 31)) < d) ++s;
    return {d, static_cast<uint32_t>(((uint64_t{1} << s) + d - 1) / d), s};
  }

  FLASH3_HD uint32_t quotient(uint32_t n) const { return static_cast<uint32_t>((uint64_t{n} * multiplier) >> shift); }
};

}  // namespace flash3::core
