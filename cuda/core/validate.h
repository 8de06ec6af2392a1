// Everything about a call that can be checked on the host before anything is launched. Every message names the field
// of flash3_params, its value and what is allowed.
#pragma once

#include "core/status.h"
#include "flash3.h"

namespace flash3::core {

// The problem without its tensors: version, backend, dtype, sizes, options. All that flash3_workspace_size() needs.
Status validate_problem(const flash3_params &params);

// Pointers and strides. params have passed validate_problem.
Status validate_tensors(const flash3_params &params);

// workspace and workspace_bytes. params have passed validate_problem.
Status validate_workspace(const flash3_params &params);

// All of the above.
Status validate(const flash3_params &params);

}  // namespace flash3::core
