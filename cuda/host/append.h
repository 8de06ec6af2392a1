// New rows of K and V into the cache.
#pragma once

#include "flash3.h"
#include "host/kernels.h"

namespace flash3::host {

// Writes k_new, rotated where rotary_cos is given, and v_new behind the filled rows of each sequence, and nothing else.
// params have passed core::validate and have k_new.
void append_rows(const flash3_params &params, const Kernels &kernels);

}  // namespace flash3::host
