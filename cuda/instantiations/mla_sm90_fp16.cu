#include "launch/mla_kernel.cuh"

namespace flash3::launch {

template SplitKernel mla_kernel<FLASH3_FLOAT16>();

}  // namespace flash3::launch
