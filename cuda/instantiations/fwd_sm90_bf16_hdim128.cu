#include "launch/fwd_kernel.cuh"

template flash3::launch::FwdKernel flash3::launch::fwd_kernel<FLASH3_BFLOAT16, 128>();
