// Leave for kernels to use more shared memory than the 48 KB that every one has.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flash3::launch {

// Once a kernel and device; does nothing later. leave_room: all that a multiprocessor has becomes shared memory, so
// that blocks of another kernel may find room beside this one's; otherwise it is not more than this kernel asks for.
cudaError_t allow_shared_memory(const void *function, uint32_t bytes, int32_t device, bool leave_room = false);

}  // namespace flash3::launch
