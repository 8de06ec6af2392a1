// The calls of the split-KV kernel, with the kernels before and behind it.
#pragma once

#include <cuda_runtime_api.h>

#include "core/status.h"
#include "device/partials.h"
#include "flash3.h"
#include "launch/device_info.h"
#include "launch/split_kernel.h"

namespace flash3::launch {

// Enqueues a call of the split-KV kernel (core::Route): the append, attention, and the merging of partial results. The
// device is current. others: of a call that is core::is_packed_decoding, where sequences with more queries than that
// expects are left to another call: (batch), gets the queries of those and 0 of others.
core::Status split_forward(const flash3_params &params, const DeviceInfo &device, cudaStream_t stream,
                           int32_t *others = nullptr);

// Where the partial results of a call lie in its workspace, whichever kernel computes it.
device::Partials partials_of(const flash3_params &params);

// Enqueues the merging of so many pieces, behind the forward kernel that computes them.
core::Status merge_pieces(const flash3_params &params, const SplitKernel &kernel, int32_t pieces,
                          const DeviceInfo &device, cudaStream_t stream);

}  // namespace flash3::launch
