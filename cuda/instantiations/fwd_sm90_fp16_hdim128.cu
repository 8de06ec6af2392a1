#include "launch/fwd_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_FLOAT16, 8);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 9);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 10);

}  // namespace flash3::launch
