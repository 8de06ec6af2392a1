// A list of requirements, of which the first that fails becomes the status.
#pragma once

#include "core/status.h"

namespace flash3::core {

class Checker {
 public:
  // On failure: "<field> is <value>; it must be <allowed...>". The text is made only then, since calls are many.
  template <class Value, class... Allowed>
  void require(bool holds, const char *field, const Value &value, const Allowed &...allowed) {
    require_or(FLASH3_INVALID_ARGUMENT, holds, field, value, allowed...);
  }

  // The same with another status than FLASH3_INVALID_ARGUMENT.
  template <class Value, class... Allowed>
  void require_or(flash3_status code, bool holds, const char *field, const Value &value, const Allowed &...allowed) {
    if (holds || !status_.ok()) return;
    status_ = error(code, field, " is ", value, "; it must be ", allowed...);
  }

  bool ok() const { return status_.ok(); }
  Status status() const { return status_; }

 private:
  Status status_;
};

}  // namespace flash3::core
