// float32 results into a tensor's dtype.
#pragma once

#include <cstdint>

namespace flash3::host {

// dst[j] = src[j * stride] * factor for j < count, rounded to the nearest even; dtype is a flash3_dtype.
void store_scaled(int32_t dtype, const float *src, int64_t stride, int32_t count, float factor, void *dst);

}  // namespace flash3::host
