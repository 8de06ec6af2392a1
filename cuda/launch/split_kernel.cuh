// Implements split_kernel.h; included by the instantiations only.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/half.h>

#include <type_traits>

#include "device/merge_kernel.cuh"
#include "device/split_kernel_sm90.cuh"
#include "launch/split_kernel.h"

namespace flash3::launch {

template <flash3_dtype kDtype, int kConfigIndex>
SplitKernel split_kernel() {
  using Element = std::conditional_t<kDtype == FLASH3_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kAll>;
  using Plain = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kPlain>;
  using SeesAllKeys = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kSeeAllKeys>;
  using ByWarps = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kByWarps>;
  using Appends = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kAppend>;
  using AppendsByWarps = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kAppendByWarps>;
  using Packed = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kPacked>;
  using PackedSeesAllKeys = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kPackedSeeAllKeys>;
  using PackedByWarps = device::SplitTraits<Element, kConfigIndex, device::SplitCalls::kPackedByWarps>;
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename Plain::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename SeesAllKeys::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename ByWarps::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename Appends::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename AppendsByWarps::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename Packed::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename PackedSeesAllKeys::SharedStorage));
  static_assert(sizeof(typename Traits::SharedStorage) == sizeof(typename PackedByWarps::SharedStorage));
  constexpr int kMergeCols = Traits::kHeadDim <= 64 ? 2 : Traits::kHeadDim <= 128 ? 4 : 8;
  SplitKernel kernel;
  kernel.function = reinterpret_cast<const void *>(&device::split_kernel_sm90<Traits>);
  kernel.plain = reinterpret_cast<const void *>(&device::split_kernel_sm90<Plain>);
  kernel.sees_all_keys = reinterpret_cast<const void *>(&device::split_kernel_sm90<SeesAllKeys>);
  kernel.by_warps = reinterpret_cast<const void *>(&device::split_kernel_sm90<ByWarps>);
  kernel.appends = reinterpret_cast<const void *>(&device::split_kernel_sm90<Appends>);
  kernel.appends_by_warps = reinterpret_cast<const void *>(&device::split_kernel_sm90<AppendsByWarps>);
  kernel.packed = reinterpret_cast<const void *>(&device::split_kernel_sm90<Packed>);
  kernel.packed_sees_all_keys = reinterpret_cast<const void *>(&device::split_kernel_sm90<PackedSeesAllKeys>);
  kernel.packed_by_warps = reinterpret_cast<const void *>(&device::split_kernel_sm90<PackedByWarps>);
  kernel.merge_parts = reinterpret_cast<const void *>(&device::merge_parts_kernel<Element, kMergeCols>);
  kernel.merge_splits = reinterpret_cast<const void *>(&device::merge_splits_kernel<Element, kMergeCols>);
  kernel.merge_packed = reinterpret_cast<const void *>(&device::merge_packed_kernel<Element, kMergeCols>);
  const auto launch = [](const core::SplitFlight &f) { return SplitLaunch{f, Traits::launch_bytes(f)}; };
  kernel.boxes = launch(Traits::kConfig.boxes);
  kernel.rows = launch(Traits::kConfig.rows);
  kernel.dense_for_warps = launch(Traits::kConfig.dense_for_warps);
  kernel.threads = Traits::kThreads;
  kernel.merge_threads = device::kMergeThreads;
  kernel.head_dim = Traits::kHeadDim;
  kernel.block_n = Traits::kBlockN;
  kernel.box_cols = Traits::kBoxCols;
  kernel.swizzle_bytes = Traits::kSwizzleBytes;
  return kernel;
}

}  // namespace flash3::launch
