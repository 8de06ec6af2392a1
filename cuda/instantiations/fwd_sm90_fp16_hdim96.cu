#include "launch/fwd_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_FLOAT16, 5);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 6);
FLASH3_INSTANTIATE_CACHE(FLASH3_FLOAT16, 1);

}  // namespace flash3::launch
