#include "launch/fwd_kernel.cuh"
#include "launch/split_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_FLOAT16, 0);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 1);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 2);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 3);
FLASH3_INSTANTIATE(FLASH3_FLOAT16, 4);
template SplitKernel split_kernel<FLASH3_FLOAT16, 0>();

}  // namespace flash3::launch
