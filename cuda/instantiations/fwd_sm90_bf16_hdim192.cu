#include "launch/fwd_kernel.cuh"
#include "launch/split_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_BFLOAT16, 10);
template SplitKernel split_kernel<FLASH3_BFLOAT16, 3>();

}  // namespace flash3::launch
