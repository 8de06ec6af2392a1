#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "core/validate.h"
#include "device/combine_kernel.cuh"
#include "launch/device_info.h"
#include "launch/fwd.h"

namespace flash3::launch {
namespace {

static_assert(device::kMostCombined == core::kMaxSplits);

constexpr int64_t kEnoughWarps = 2048;  // to keep all multiprocessors of a GPU loading
constexpr int32_t kLeastSplits = 8;     // of a warp: their loads are under way at the same time

// Several for a result where results are few and splits many. Depends on sizes alone, as the order of the sum does.
int32_t warps_per_result(int64_t results, int32_t num_splits) {
  int32_t warps = 1;
  while (warps < device::kCombineWarps && results * warps < kEnoughWarps && num_splits > kLeastSplits * warps) {
    warps *= 2;
  }
  return warps;
}

device::CombineArgs make_args(const flash3_combine_params &p) {
  device::CombineArgs args = {};
  args.out_partial = p.out_partial;
  args.lse_partial = p.lse_partial;
  args.out = p.out;
  args.lse = p.lse;
  args.out_partial_split_stride = p.out_partial_split_stride;
  args.lse_partial_split_stride = p.lse_partial_split_stride;
  args.out_partial_strides = {p.out_partial_batch_stride, p.out_partial_row_stride, p.out_partial_head_stride};
  args.lse_partial_strides = {p.lse_partial_batch_stride, p.lse_partial_row_stride, p.lse_partial_head_stride};
  args.out_strides = {p.out_batch_stride, p.out_row_stride, p.out_head_stride};
  args.lse_strides = {p.lse_batch_stride, p.lse_row_stride, p.lse_head_stride};
  args.results = int64_t{p.batch} * p.seqlen * p.nheads;
  args.seqlen = p.seqlen;
  args.nheads = p.nheads;
  args.head_dim = p.head_dim;
  args.num_splits = p.num_splits;
  args.warps_per_result = warps_per_result(args.results, p.num_splits);
  return args;
}

// The widest vectors that head_dim allows, as long as a row has one for every lane.
template <class Out>
const void *kernel_of(int32_t head_dim) {
  if (head_dim % 4 == 0 && head_dim > 64) return reinterpret_cast<const void *>(&device::combine_kernel<Out, 4>);
  if (head_dim % 2 == 0 && head_dim > 32) return reinterpret_cast<const void *>(&device::combine_kernel<Out, 2>);
  return reinterpret_cast<const void *>(&device::combine_kernel<Out, 1>);
}

const void *kernel_of(const flash3_combine_params &p) {
  switch (p.dtype) {
    case FLASH3_FLOAT16:
      return kernel_of<cutlass::half_t>(p.head_dim);
    case FLASH3_BFLOAT16:
      return kernel_of<cutlass::bfloat16_t>(p.head_dim);
    default:
      return kernel_of<float>(p.head_dim);
  }
}

}  // namespace

core::Status combine(const flash3_combine_params &params, void *stream) {
  DeviceInfo device;
  core::Status status = usable_device(params.device, &device);
  if (!status.ok()) return status;
  const DeviceGuard guard(device.ordinal);
  if (guard.error() != cudaSuccess) return cuda_error("cudaSetDevice", guard.error());
  device::CombineArgs args = make_args(params);
  const int64_t results_of_block = device::kCombineWarps / args.warps_per_result;
  const int64_t blocks = (args.results + results_of_block - 1) / results_of_block;
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid; blocks go on where there are more results
  void *arguments[] = {&args};
  const cudaError_t error =
      cudaLaunchKernel(kernel_of(params), dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks))),
                       dim3(device::kCombineThreads), arguments, 0, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return cuda_error("launching the combine kernel", error);
  return {};
}

}  // namespace flash3::launch
