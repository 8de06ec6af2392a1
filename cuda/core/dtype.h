// The element types of flash3.h.
#pragma once

#include <cstdint>

#include "flash3.h"

namespace flash3::core {

// dtype is a flash3_dtype.
inline int64_t element_bytes(int32_t dtype) { return dtype == FLASH3_FLOAT32 ? 4 : 2; }

}  // namespace flash3::core
