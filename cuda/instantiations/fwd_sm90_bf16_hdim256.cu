#include "launch/fwd_kernel.cuh"
#include "launch/split_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 11);
FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 12);
template SplitKernel split_kernel<FLASH3_BFLOAT16, 4>();

}  // namespace flash3::launch
