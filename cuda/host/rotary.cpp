#include "host/rotary.h"

#include "core/dtype.h"
#include "host/store.h"

namespace flash3::host {

RotaryRows::RotaryRows(const flash3_params &params, const Kernels &kernels)
    : params_(params),
      kernels_(kernels),
      positions_(core::RotaryPositions::of(params)),
      half_(on() ? params.rotary_dim / 2 : 0),
      row_(2 * half_),
      cos_(half_),
      sin_(half_) {}

void RotaryRows::turn(const void *src, int64_t position, void *dst) {
  const int64_t element_bytes = core::element_bytes(params_.dtype);
  const auto load_table = [&](const void *table, int64_t row_stride, float *to) {
    const char *row = static_cast<const char *>(table) + position * row_stride * element_bytes;
    kernels_.load_rows(params_.dtype, row, 0, 1, half_, to);
  };
  load_table(params_.rotary_cos, params_.rotary_cos_row_stride, cos_.data());
  load_table(params_.rotary_sin, params_.rotary_sin_row_stride, sin_.data());
  kernels_.load_rows(params_.dtype, src, 0, 1, 2 * half_, row_.data());
  const int32_t step = params_.rotary_interleaved ? 2 : 1;
  const int32_t partner = params_.rotary_interleaved ? 1 : half_;
  for (int32_t i = 0; i < half_; ++i) {
    float &x = row_[i * step];
    float &y = row_[i * step + partner];
    const float turned = x * cos_[i] - y * sin_[i];
    y = x * sin_[i] + y * cos_[i];
    x = turned;
  }
  store_scaled(params_.dtype, row_.data(), 1, 2 * half_, 1.0f, dst);
}

}  // namespace flash3::host
