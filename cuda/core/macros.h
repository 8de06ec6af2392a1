// Function markers that let the same integer logic compile for the GPU (nvcc) and for plain g++.
#pragma once

#if defined(__CUDACC__)
#define FLASH3_HD __host__ __device__ __forceinline__
#else
#define FLASH3_HD inline
#endif
