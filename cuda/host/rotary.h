// Rotary embedding of single rows.
#pragma once

#include <cstdint>
#include <vector>

#include "core/rotary.h"
#include "flash3.h"
#include "host/kernels.h"

namespace flash3::host {

// The scratch of one thread. Only the constructor allocates.
class RotaryRows {
 public:
  RotaryRows(const flash3_params &params, const Kernels &kernels);

  bool on() const { return positions_.base != nullptr; }
  const core::RotaryPositions &positions() const { return positions_; }

  // Turns the first rotary_dim columns of src, a row of the call's dtype, and rounds them to that dtype: dst receives
  // these columns alone, and may be src.
  void turn(const void *src, int64_t position, void *dst);

 private:
  const flash3_params &params_;
  const Kernels &kernels_;
  const core::RotaryPositions positions_;
  const int32_t half_;  // pairs of a row
  std::vector<float> row_, cos_, sin_;
};

}  // namespace flash3::host
