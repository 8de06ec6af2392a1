#include "launch/fwd_kernel.cuh"

template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 0, false, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 0, false, true>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 0, true, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 0, true, true>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 1, false, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 1, false, true>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 1, true, false>();
template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_FLOAT16, 1, true, true>();
