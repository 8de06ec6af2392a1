#include "launch/clusters.h"

#include <map>
#include <mutex>
#include <utility>

#include "launch/shared_memory.h"

namespace flash3::launch {

cudaLaunchAttribute pair_attribute() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 1, 1};
  return attribute;
}

cudaError_t resident_pairs(const FwdKernel &kernel, int32_t device, int32_t *pairs) {
  static std::mutex mutex;
  static std::map<std::pair<const void *, int32_t>, int32_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({kernel.function, device});
  if (found != known.end()) {
    *pairs = found->second;
    return cudaSuccess;
  }
  cudaError_t error = allow_shared_memory(kernel.function, kernel.shared_bytes, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = pair_attribute();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(2);
  config.blockDim = dim3(static_cast<unsigned>(kernel.threads));
  config.dynamicSmemBytes = kernel.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaOccupancyMaxActiveClusters(pairs, kernel.function, &config);
  if (error == cudaSuccess) known[{kernel.function, device}] = *pairs;
  return error;
}

}  // namespace flash3::launch
