// Implements fwd_kernel.h; included by the instantiations only.
#pragma once

#include <type_traits>

#include "device/fwd_kernel_sm90.cuh"
#include "device/short_kernel_sm90.cuh"
#include "launch/fwd_kernel.h"

namespace flash3::launch {

template <flash3_dtype kDtype>
struct ElementOf {
  static_assert(kDtype == FLASH3_FLOAT16 || kDtype == FLASH3_BFLOAT16, "16-bit inputs");
  using Type = std::conditional_t<kDtype == FLASH3_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
};

template <class Traits>
FwdKernel describe_kernel() {
  FwdKernel kernel;
  if constexpr (Traits::kIsShort) {
    kernel.function = reinterpret_cast<const void *>(&device::short_fwd_kernel_sm90<Traits>);
  } else {
    kernel.function = reinterpret_cast<const void *>(&device::fwd_kernel_sm90<Traits>);
  }
  kernel.shared_bytes = sizeof(typename Traits::SharedStorage) * Traits::kStreams;
  kernel.is_short = Traits::kIsShort;
  kernel.streams = Traits::kStreams;
  kernel.blocks_per_sm = Traits::kBlocksPerSm;
  kernel.threads = Traits::kThreads;
  kernel.head_dim = Traits::kHeadDim;
  kernel.block_m = Traits::kBlockM;
  kernel.block_n = Traits::kBlockN;
  kernel.box_cols = Traits::kBoxCols;
  kernel.swizzle_bytes = Traits::kSwizzleBytes;
  return kernel;
}

template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod, bool kVarlen>
FwdKernel fwd_kernel() {
  using Element = typename ElementOf<kDtype>::Type;
  return describe_kernel<device::TileTraits<Element, kConfigIndex, kScoreMod, kVarlen>>();
}

template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod>
FwdKernel cache_kernel() {
  using Element = typename ElementOf<kDtype>::Type;
  return describe_kernel<device::TileTraits<Element, kConfigIndex, kScoreMod, true, true>>();
}

}  // namespace flash3::launch

// Compiles every kernel of one tile config.
#define FLASH3_INSTANTIATE(dtype, config)                       \
  template FwdKernel fwd_kernel<dtype, config, false, false>(); \
  template FwdKernel fwd_kernel<dtype, config, false, true>();  \
  template FwdKernel fwd_kernel<dtype, config, true, false>();  \
  template FwdKernel fwd_kernel<dtype, config, true, true>()

#define FLASH3_INSTANTIATE_CACHE(dtype, config)            \
  template FwdKernel cache_kernel<dtype, config, false>(); \
  template FwdKernel cache_kernel<dtype, config, true>()
