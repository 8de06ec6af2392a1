// What the CUDA side of the library offers to the C interface. Present only in builds with FLASH3_WITH_CUDA.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "flash3.h"

namespace flash3::launch {

// Enqueues the forward pass on the stream. params have passed core::validate and have at least one query
// row, or one to append.
core::Status forward(const flash3_params &params, void *stream);

// Enqueues flash3_combine on the stream. params have passed core::validate_combine and have at least one row.
core::Status combine(const flash3_combine_params &params, void *stream);

// Whether a kernel of this build runs on that device; -1: the current one.
core::Status device_check(int32_t device);

// Lines "archs=..", "dtypes=..", "head_dims=..", "cuda=..", without a newline at the end.
const char *built_kernels();

}  // namespace flash3::launch
