// Implements mla_kernel() of split_kernel.h; included by the instantiations only.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <type_traits>

#include "device/merge_kernel.cuh"
#include "device/mla_kernel_sm90.cuh"
#include "launch/split_kernel.h"

namespace flash3::launch {

template <flash3_dtype kDtype>
SplitKernel mla_kernel() {
  using Element = std::conditional_t<kDtype == FLASH3_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = device::MlaTraits<Element, false>;
  using Plain = device::MlaTraits<Element, true>;
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename Plain::SharedStorage));
  SplitKernel kernel;
  kernel.function = reinterpret_cast<const void *>(&device::mla_kernel_sm90<Traits>);
  kernel.plain = kernel.function;
  kernel.sees_all_keys = reinterpret_cast<const void *>(&device::mla_kernel_sm90<Plain>);
  kernel.merge_parts = reinterpret_cast<const void *>(&device::merge_parts_kernel<Element, Traits::kHeadDimV / 32>);
  kernel.merge_splits = reinterpret_cast<const void *>(&device::merge_splits_kernel<Element, Traits::kHeadDimV / 32>);
  kernel.merge_packed = reinterpret_cast<const void *>(&device::merge_packed_kernel<Element, Traits::kHeadDimV / 32>);
  kernel.by_warps = kernel.appends = kernel.appends_by_warps = nullptr;
  kernel.packed = kernel.packed_sees_all_keys = kernel.packed_by_warps = nullptr;
  kernel.boxes = kernel.rows = kernel.dense_for_warps = {{0, 1}, sizeof(typename Traits::SharedStorage)};
  kernel.threads = Traits::kThreads;
  kernel.merge_threads = device::kMergeThreads;
  kernel.head_dim = Traits::kHeadDim;
  kernel.block_n = Traits::kBlockN;
  kernel.box_cols = Traits::kChunkCols;
  kernel.swizzle_bytes = Traits::kSwizzleBytes;
  return kernel;
}

}  // namespace flash3::launch
