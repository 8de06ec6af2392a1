// The portable engine: exact attention on host memory with CPU threads.
#pragma once

#include "core/status.h"
#include "flash3.h"

namespace flash3::host {

// Computes the call before it returns. params have passed core::validate. Results do not depend on num_threads. Memory
// beside the tensors is some MB per thread and independent of the lengths.
core::Status forward(const flash3_params &params);

// The same for flash3_combine. params have passed core::validate_combine.
core::Status combine(const flash3_combine_params &params);

}  // namespace flash3::host
