// Writing new rows into the KV cache and rotating q, before the forward kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "device/fwd_args.h"
#include "flash3.h"

namespace flash3::launch {

// Whether a call has new rows for the cache, or queries to rotate.
inline bool has_append(const flash3_params &params) { return params.k_new != nullptr || params.rotary_cos != nullptr; }

// k_new and v_new.
device::TensorRows new_keys(const flash3_params &params);
device::TensorRows new_values(const flash3_params &params);

// Enqueues device::append_kernel: new rows of k and v go into the cache where params have k_new, and q goes to where
// queries() says where params have rotary_cos; rows that are in no sequence are not written. Nothing where there is
// neither. A kernel launched behind it may start early, and finds all of this done after griddepcontrol.wait. params
// have passed core::validate, and the device is current.
cudaError_t launch_append(const flash3_params &params, cudaStream_t stream);

}  // namespace flash3::launch
