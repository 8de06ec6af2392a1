// 512-bit vectors, 32 registers: 16 accumulators, 2 of the right operand, broadcasts.
#define FLASH3_VECTOR_BYTES 64
#define FLASH3_GROUP_VECTORS 2
#define FLASH3_REGISTER_ROWS 8
#include "host/kernels_impl.h"

namespace flash3::host {
const Kernels kAvx512Kernels = {"avx512", kGroupRows, kNarrowRows, update, load_rows};
}
