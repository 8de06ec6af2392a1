#include "launch/fwd_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 13);
FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 14);
FLASH3_INSTANTIATE_CACHE(FLASH3_BFLOAT16, 4);

}  // namespace flash3::launch
