// The cache of a call of the forward kernel, and where its queries are.
#pragma once

#include "core/status.h"
#include "device/fwd_args.h"
#include "flash3.h"
#include "launch/fwd_kernel.h"

namespace flash3::launch {

// q as the caller gave it.
device::TensorRows given_queries(const flash3_params &params);

// The same, or with rotary_cos the place in the workspace where the append leaves it rotated.
device::TensorRows queries(const flash3_params &params);

// Sets what kernels for caches read, the maps of k and v included.
core::Status set_cache(const flash3_params &params, const FwdKernel &kernel, device::FwdArgs *args);

}  // namespace flash3::launch
