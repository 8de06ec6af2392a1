// The portable engine: exact attention on host memory with CPU threads.
#pragma once

#include "core/status.h"
#include "flash3.h"

namespace flash3::host {

// Computes the call before it returns. params have passed core::validate and have at least one query row. Results do
// not depend on num_threads. Memory beside the tensors is some MB per thread and independent of the lengths.
core::Status forward(const flash3_params &params);

}  // namespace flash3::host
