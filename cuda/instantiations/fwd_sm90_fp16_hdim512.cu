#include "launch/fwd_kernel.cuh"

namespace flash3::launch {

FLASH3_INSTANTIATE(FLASH3_FLOAT16, 18);

}  // namespace flash3::launch
