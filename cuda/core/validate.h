// Everything about a call that can be checked on the host before anything is launched. Every message names the field
// of flash3_params, its value and what is allowed.
#pragma once

#include "core/status.h"
#include "flash3.h"

namespace flash3::core {

inline constexpr int32_t kMaxSplits = 256;  // as in FlashAttention-3
// What the host engine computes; the CUDA kernels of a build may end before.
inline constexpr int32_t kMaxHeadDim = 576;  // a latent of 512 columns and 64 with rotary embedding
inline constexpr int32_t kMaxHeadDimV = 512;

// The problem without its tensors: version, backend, dtype, sizes, options. All that flash3_workspace_size() needs.
Status validate_problem(const flash3_params &params);

// Pointers and strides. params have passed validate_problem.
Status validate_tensors(const flash3_params &params);

// workspace and workspace_bytes. params have passed validate_problem.
Status validate_workspace(const flash3_params &params);

// All of the above.
Status validate(const flash3_params &params);

// All of a call of flash3_combine.
Status validate_combine(const flash3_combine_params &params);

}  // namespace flash3::core
