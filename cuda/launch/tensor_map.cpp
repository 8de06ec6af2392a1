#include "launch/tensor_map.h"

#include "launch/driver.h"

namespace flash3::launch {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encoder() {
  static const auto encoder = driver_function<Encode>("cuTensorMapEncodeTiled");
  return encoder;
}

struct Extents {
  cuuint64_t dims[5];
  cuuint64_t strides[4];  // bytes, of the outer dimensions
};

core::Status encode_tiled(const char *name, uintptr_t base, const Extents &extents, bool bfloat16, const BoxShape &box,
                          CUtensorMap *map) {
  const Encode encode = find_encoder();
  if (encode == nullptr) {
    return core::error(FLASH3_NO_DEVICE,
                       "the CUDA driver offers no cuTensorMapEncodeTiled; it must be of CUDA 12.0 or later");
  }
  const auto rows = static_cast<cuuint32_t>(box.rows);
  const auto heads = static_cast<cuuint32_t>(box.heads);
  const cuuint32_t box_dims[5] = {static_cast<cuuint32_t>(box.cols), heads > 0 ? heads : rows, heads > 0 ? rows : 1, 1,
                                  1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = encode(
      map, bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5,
      reinterpret_cast<void *>(base), extents.dims, extents.strides, box_dims, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box.swizzle_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      box.read_once ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return core::error(FLASH3_CUDA_ERROR, "the CUDA driver refused the tensor map of ", name, " (error ",
                       static_cast<int>(result), "; extents ", extents.dims[1], " and ", extents.dims[2], ", stride ",
                       extents.strides[0], " bytes)");
  }
  return {};
}

}  // namespace

core::Status encode_tensor_map(const TensorView &tensor, bool bfloat16, const BoxShape &box, CUtensorMap *map) {
  constexpr int64_t kElementBytes = 2;
  // The stride of a dimension of extent 1 is never used, but it must be encodable.
  const auto stride = [&](int64_t extent, int64_t elements) {
    return static_cast<cuuint64_t>(extent > 1 ? elements * kElementBytes : 16);
  };
  const auto cols = static_cast<cuuint64_t>(tensor.cols);
  const auto rows = static_cast<cuuint64_t>(tensor.rows);
  const auto heads = static_cast<cuuint64_t>(tensor.heads);
  const auto batch = static_cast<cuuint64_t>(tensor.batch);
  const cuuint64_t row_bytes = stride(tensor.rows, tensor.at.row_stride);
  const cuuint64_t head_bytes = stride(tensor.heads, tensor.at.head_stride);
  const cuuint64_t batch_bytes = stride(tensor.batch, tensor.at.batch_stride);
  const Extents usual = {{cols, rows, rows + 1, heads, batch}, {row_bytes, row_bytes, head_bytes, batch_bytes}};
  const Extents heads_first = {{cols, heads, rows, rows + 1, batch}, {head_bytes, row_bytes, row_bytes, batch_bytes}};
  const Extents &extents = box.heads > 0 ? heads_first : usual;
  // Addresses are sums modulo 2^64, so a base below the tensor (even below zero) is as good as any.
  const uintptr_t base = reinterpret_cast<uintptr_t>(tensor.at.data) - rows * row_bytes;
  return encode_tiled(tensor.name, base, extents, bfloat16, box, map);
}

core::Status encode_zero_map(const void *data, bool bfloat16, const BoxShape &box, CUtensorMap *map) {
  const Extents extents = {{8, 1, 1, 1, 1}, {16, 16, 16, 16}};
  return encode_tiled("zeros", reinterpret_cast<uintptr_t>(data), extents, bfloat16, box, map);
}

}  // namespace flash3::launch
