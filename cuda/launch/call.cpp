#include <cuda_runtime_api.h>

#include "core/two_steps.h"
#include "launch/device_info.h"
#include "launch/forward_step.h"
#include "launch/fwd.h"
#include "launch/split.h"

namespace flash3::launch {

core::Status forward(const flash3_params &params, void *stream) {
  DeviceInfo device;
  core::Status status = usable_device(params.device, &device);
  if (!status.ok()) return status;
  const DeviceGuard guard(device.ordinal);
  if (guard.error() != cudaSuccess) return cuda_error("cudaSetDevice", guard.error());
  auto *const on = static_cast<cudaStream_t>(stream);
  if (!core::takes_two_steps(params)) return forward_step(params, device, on);
  const core::TwoSteps steps = core::TwoSteps::of(params);
  status = split_forward(steps.singles, device, on, steps.queries_of_others());
  return status.ok() ? forward_step(steps.others, device, on) : status;
}

}  // namespace flash3::launch
