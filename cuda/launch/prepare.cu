#include "device/varlen_prepare.cuh"
#include "launch/prepare.h"

namespace flash3::launch {

cudaError_t launch_dense_prepare(int32_t *tile_counter, cudaStream_t stream) {
  void *arguments[] = {&tile_counter};
  return cudaLaunchKernel(reinterpret_cast<const void *>(&device::dense_prepare), dim3(1), dim3(32), arguments, 0,
                          stream);
}

cudaError_t launch_varlen_prepare(const core::SeqSide &q_side, int32_t batch, int32_t block_m, int32_t most_m_blocks,
                                  int32_t *first_m_block, int32_t *tile_counter, cudaStream_t stream) {
  device::PrepareArgs args{q_side, batch, block_m, most_m_blocks, first_m_block, tile_counter};
  void *arguments[] = {&args};
  return cudaLaunchKernel(reinterpret_cast<const void *>(&device::varlen_prepare), dim3(1),
                          dim3(device::kPrepareThreads), arguments, 0, stream);
}

}  // namespace flash3::launch
