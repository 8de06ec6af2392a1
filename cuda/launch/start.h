// Starting a kernel with launch attributes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flash3::launch {

struct Start {
  dim3 blocks;
  int32_t threads;
  uint32_t shared_bytes = 0;
  // It may start while the kernel before runs, which waits for everything before as usual.
  bool early = false;
  // All that a multiprocessor has becomes shared memory, so that blocks of the kernel behind find room beside this
  // one's; by default it is not more than this one asks for, and more only once nothing runs there.
  bool leaves_room = false;
  dim3 cluster = {1, 1, 1};  // thread blocks, along the axes of the grid

  unsigned blocks_of_cluster() const { return cluster.x * cluster.y * cluster.z; }
};

// args: what the kernel, a __global__ function, receives.
cudaError_t start(const void *kernel, const Start &how, void *args, cudaStream_t stream);

}  // namespace flash3::launch
