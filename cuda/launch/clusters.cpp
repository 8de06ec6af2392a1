#include "launch/clusters.h"

#include <map>
#include <mutex>
#include <tuple>

#include "launch/shared_memory.h"

namespace flash3::launch {

cudaLaunchAttribute cluster_attribute(const Start &how) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {how.cluster.x, how.cluster.y, how.cluster.z};
  return attribute;
}

cudaError_t resident_clusters(const void *kernel, const Start &how, int32_t device, int32_t *clusters) {
  static std::mutex mutex;
  static std::map<std::tuple<const void *, int32_t, uint32_t, unsigned>, int32_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto asked = std::make_tuple(kernel, device, how.shared_bytes, how.blocks_of_cluster());
  const auto found = known.find(asked);
  if (found != known.end()) {
    *clusters = found->second;
    return cudaSuccess;
  }
  cudaError_t error = allow_shared_memory(kernel, how.shared_bytes, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = cluster_attribute(how);
  cudaLaunchConfig_t config = {};
  config.gridDim = how.cluster;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
  if (error == cudaSuccess) known[asked] = *clusters;
  return error;
}

}  // namespace flash3::launch
