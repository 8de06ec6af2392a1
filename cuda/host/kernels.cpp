#include "host/kernels.h"

#include <cstdlib>
#include <cstring>

namespace flash3::host {
namespace {

struct Choice {
  const Kernels *kernels;
  bool runs;
};

}  // namespace

core::Status select_kernels(const Kernels **kernels) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  const Choice choices[] = {
#if defined(__x86_64__)
      {&kAvx512Kernels, avx2 && __builtin_cpu_supports("avx512f")},
      {&kAvx2Kernels, avx2},
#endif
      {&kBaselineKernels, true},
  };
  const char *wanted = std::getenv("FLASH3_HOST_ISA");
  for (const Choice &choice : choices) {
    if (!choice.runs || (wanted != nullptr && std::strcmp(wanted, choice.kernels->name) != 0)) continue;
    *kernels = choice.kernels;
    return {};
  }
  return core::error(
      FLASH3_UNSUPPORTED, "FLASH3_HOST_ISA is ", wanted,
      "; it must be unset or name kernels that this build has and this CPU runs: baseline, avx2, avx512");
}

}  // namespace flash3::host
