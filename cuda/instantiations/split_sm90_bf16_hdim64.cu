#include "launch/split_kernel.cuh"

namespace flash3::launch {

template SplitKernel split_kernel<FLASH3_BFLOAT16, 0>();

}  // namespace flash3::launch
