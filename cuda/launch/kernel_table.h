// Which forward kernels this build holds.
#pragma once

#include "core/status.h"
#include "launch/fwd_kernel.h"

namespace flash3::launch {

// The kernel for these params, or FLASH3_UNSUPPORTED with what was built.
core::Status find_kernel(const flash3_params &params, const FwdKernel **kernel);

}  // namespace flash3::launch
