// Numbers that several layers need.
#pragma once

namespace flash3::core {

inline constexpr float kLog2e = 1.44269504088896341f;
inline constexpr float kLn2 = 0.693147180559945309f;

}  // namespace flash3::core
