// Merging the partial results of a call.
#pragma once

#include <cuda_runtime_api.h>

#include "device/split_args.h"
#include "flash3.h"
#include "launch/split_kernel.h"

namespace flash3::launch {

// Enqueues the kernel that merges what has been computed with this schedule, partials and results. It may start early,
// and waits for the kernel before. of_pieces: by the forward kernel.
cudaError_t launch_merge(const flash3_params &params, const SplitKernel &kernel, const device::SplitArgs &args,
                         bool of_pieces, cudaStream_t stream);

}  // namespace flash3::launch
