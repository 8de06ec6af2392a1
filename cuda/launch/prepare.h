// Small launches that come before the forward kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/seqlen.h"

namespace flash3::launch {

// Enqueues device::dense_prepare.
cudaError_t launch_dense_prepare(int32_t *tile_counter, cudaStream_t stream);

// Enqueues device::varlen_prepare.
cudaError_t launch_varlen_prepare(const core::SeqSide &q_side, int32_t batch, int32_t block_m, int32_t most_m_blocks,
                                  int32_t *first_m_block, int32_t *tile_counter, cudaStream_t stream);

}  // namespace flash3::launch
