#include "launch/fwd_kernel.cuh"

template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 4, false, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 4, false, true>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 4, true, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 4, true, true>();
