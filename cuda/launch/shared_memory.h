// Leave for kernels to use more shared memory than the 48 KB that every one has.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flash3::launch {

// Once a kernel and device; does nothing later.
cudaError_t allow_shared_memory(const void *function, uint32_t bytes, int32_t device);

}  // namespace flash3::launch
