#include "launch/fwd_kernel.cuh"
#include "launch/split_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 7);
FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 8);
FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 9);
template SplitKernel split_kernel<FLASH3_BFLOAT16, 2>();

}  // namespace flash3::launch
