#include "launch/fwd_kernel.cuh"

template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 3, false, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 3, false, true>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 3, true, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 3, true, true>();
