#include "launch/tensor_map.h"

#include <cuda_runtime_api.h>

namespace flash3::launch {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's encoder, asked for through the runtime so that nothing links libcuda. NULL without a driver.
Encode find_encoder() {
  static const Encode encoder = [] {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(entry) : nullptr;
  }();
  return encoder;
}

}  // namespace

core::Status encode_tensor_map(const TensorView &tensor, bool bfloat16, const BoxShape &box, CUtensorMap *map) {
  const Encode encode = find_encoder();
  if (encode == nullptr) {
    return core::error(FLASH3_NO_DEVICE, "the CUDA driver offers no cuTensorMapEncodeTiled; it must be of CUDA 12.0 or later");
  }
  constexpr int64_t kElementBytes = 2;
  const int64_t row_bytes = tensor.at.row_stride * kElementBytes;
  // The stride of a dimension of extent 1 is never used, but it must be encodable.
  const auto stride = [&](int64_t extent, int64_t elements) {
    return static_cast<cuuint64_t>(extent > 1 ? elements * kElementBytes : 16);
  };
  const cuuint64_t dims[5] = {
      static_cast<cuuint64_t>(tensor.cols), static_cast<cuuint64_t>(tensor.rows),
      static_cast<cuuint64_t>(tensor.rows) + 1, static_cast<cuuint64_t>(tensor.heads),
      static_cast<cuuint64_t>(tensor.batch)};
  const cuuint64_t strides[4] = {stride(tensor.rows, tensor.at.row_stride), stride(tensor.rows, tensor.at.row_stride),
                                 stride(tensor.heads, tensor.at.head_stride), stride(tensor.batch, tensor.at.batch_stride)};
  const cuuint32_t box_dims[5] = {static_cast<cuuint32_t>(box.cols), static_cast<cuuint32_t>(box.rows), 1, 1, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  // Addresses are sums modulo 2^64, so a base below the tensor (even below zero) is as good as any.
  const int64_t shift = tensor.rows * static_cast<int64_t>(strides[0]);
  void *base = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(tensor.at.data) - static_cast<uintptr_t>(shift));
  const CUresult result = encode(
      map, bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5, base, dims, strides, box_dims,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box.swizzle_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return core::error(FLASH3_CUDA_ERROR, "the CUDA driver refused the tensor map of ", tensor.name, " (error ",
                       static_cast<int>(result), "; rows ", tensor.rows, ", row stride ", row_bytes, " bytes)");
  }
  return {};
}

}  // namespace flash3::launch
