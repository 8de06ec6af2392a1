#include "launch/shared_memory.h"

#include <atomic>

#include "launch/kernel_table.h"

namespace flash3::launch {

cudaError_t allow_shared_memory(const void *function, uint32_t bytes, int32_t device) {
  static std::atomic<const void *> allowed[64][kMostKernels];
  std::atomic<const void *> *row = device < 64 ? allowed[device] : nullptr;
  for (int i = 0; row != nullptr && i < kMostKernels; ++i) {
    if (row[i].load(std::memory_order_acquire) == function) return cudaSuccess;
  }
  const cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  for (int i = 0; error == cudaSuccess && row != nullptr && i < kMostKernels; ++i) {
    const void *none = nullptr;
    if (row[i].compare_exchange_strong(none, function)) break;
  }
  return error;
}

}  // namespace flash3::launch
