#include "launch/fwd_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_FLOAT16, 11);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 12);
FLASH3_INSTANTIATE_CACHE(FLASH3_FLOAT16, 3);

}  // namespace flash3::launch
