// The result of a step that can fail: a code of flash3.h and one sentence for the user.
#pragma once

#include <charconv>
#include <string>
#include <type_traits>
#include <utility>

#include "flash3.h"

namespace flash3::core {

struct Status {
  flash3_status code = FLASH3_OK;
  std::string message;

  bool ok() const { return code == FLASH3_OK; }
};

namespace detail {
inline std::string text(std::string s) { return s; }
inline std::string text(const char *s) { return s; }
// Shortest decimal form that reads back as x; to_chars, since it knows no locale.
template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
std::string text(Number x) {
  char buffer[32];
  const std::to_chars_result end = std::to_chars(buffer, buffer + sizeof(buffer), x);
  return std::string(buffer, end.ptr);
}
}  // namespace detail

// Strings and numbers, one behind the other.
template <class... Parts>
std::string concat(Parts &&...parts) {
  std::string out;
  (out.append(detail::text(std::forward<Parts>(parts))), ...);
  return out;
}

// error(FLASH3_INVALID_ARGUMENT, "batch is ", -1, "; it must be >= 0")
template <class... Parts>
Status error(flash3_status code, Parts &&...parts) {
  return {code, concat(std::forward<Parts>(parts)...)};
}

}  // namespace flash3::core
