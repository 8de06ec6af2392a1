// Writing new rows into the KV cache and rotating q, before the forward kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "flash3.h"

namespace flash3::launch {

// Enqueues device::append_kernel: new rows of k and v go into the cache where params have k_new, and q goes to
// rotated_q where params have rotary_cos and rotated_q is not NULL. rotated_q is (batch, seqlen_q, nheads, head_dim)
// or, packed, (total_q, nheads, head_dim), contiguous, at a multiple of 16 bytes; rows that are in no sequence are not
// written. A kernel launched behind it may start early, and finds all of this done after griddepcontrol.wait. params
// have passed core::validate, and the device is current.
cudaError_t launch_append(const flash3_params &params, void *rotated_q, cudaStream_t stream);

}  // namespace flash3::launch
