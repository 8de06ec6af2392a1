#include "launch/fwd_kernel.cuh"

template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 5, false, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 5, false, true>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 5, true, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 5, true, true>();
