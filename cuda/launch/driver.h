// Functions of the CUDA driver, asked for through the runtime so that nothing links libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace flash3::launch {

// NULL without a driver, or with one older than CUDA 12.0.
template <class Function>
Function driver_function(const char *name) {
  void *entry = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Function>(entry) : nullptr;
}

}  // namespace flash3::launch
