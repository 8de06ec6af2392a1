#include "launch/start.h"

#include "launch/clusters.h"

namespace flash3::launch {

cudaError_t start(const void *kernel, const Start &how, void *args, cudaStream_t stream) {
  cudaLaunchAttribute attributes[3] = {};
  unsigned count = 0;
  if (how.early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (how.leaves_room) {
    attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
  if (how.blocks_of_cluster() > 1) attributes[count++] = cluster_attribute(how);
  cudaLaunchConfig_t config = {};
  config.gridDim = how.blocks;
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  void *arguments[] = {args};
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

}  // namespace flash3::launch
