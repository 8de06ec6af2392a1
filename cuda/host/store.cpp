#include "host/store.h"

#include "flash3.h"
#include "host/convert.h"

namespace flash3::host {
namespace {

template <class Element>
void store(const float *src, int64_t stride, int32_t count, float factor, void *dst) {
  auto *out = static_cast<Element *>(dst);
  for (int32_t j = 0; j < count; ++j) from_float(src[j * stride] * factor, &out[j]);
}

}  // namespace

void store_scaled(int32_t dtype, const float *src, int64_t stride, int32_t count, float factor, void *dst) {
  switch (dtype) {
    case FLASH3_FLOAT16:
      return store<Float16>(src, stride, count, factor, dst);
    case FLASH3_BFLOAT16:
      return store<BFloat16>(src, stride, count, factor, dst);
    default:
      return store<float>(src, stride, count, factor, dst);
  }
}

}  // namespace flash3::host
