// 128-bit vectors: SSE2, which every x86-64 has, or NEON.
#define FLASH3_VECTOR_BYTES 16
#define FLASH3_GROUP_VECTORS 3
#define FLASH3_REGISTER_ROWS 4
#include "host/kernels_impl.h"

namespace flash3::host {
const Kernels kBaselineKernels = {"baseline", kGroupRows, kNarrowRows, update, load_rows};
}
