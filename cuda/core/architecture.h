// Which GPUs the kernels run on.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "flash3.h"

namespace flash3::core {

// capability: 10 * major + minor of the device; built: the architectures of this build, for the message. sm_90a code
// runs on 9.0 alone: neither later nor other devices take it.
inline Status check_architecture(int32_t device, int32_t capability, const char *built) {
  if (capability == 90) return {};
  return error(FLASH3_UNSUPPORTED, "CUDA device ", device, " has compute capability ", capability / 10, ".",
               capability % 10, "; it must be 9.0 (Hopper), since this build has kernels for: archs=", built);
}

}  // namespace flash3::core
