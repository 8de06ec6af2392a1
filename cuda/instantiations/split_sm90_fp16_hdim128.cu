#include "launch/split_kernel.cuh"

namespace flash3::launch {

template SplitKernel split_kernel<FLASH3_FLOAT16, 2>();

}  // namespace flash3::launch
