// 256-bit vectors, 16 registers: 12 accumulators, 3 of the right operand, 1 broadcast.
#define FLASH3_VECTOR_BYTES 32
#define FLASH3_GROUP_VECTORS 3
#define FLASH3_REGISTER_ROWS 4
#include "host/kernels_impl.h"

namespace flash3::host {
const Kernels kAvx2Kernels = {"avx2", kGroupRows, kNarrowRows, update, load_rows};
}
