// Implements fwd_kernel.h; included by the instantiations only.
#pragma once

#include <type_traits>

#include "device/fwd_kernel_sm90.cuh"
#include "device/resident_kernel_sm90.cuh"
#include "device/short_kernel_sm90.cuh"
#include "device/wide_kernel_sm90.cuh"
#include "launch/fwd_kernel.h"

namespace flash3::launch {

template <flash3_dtype kDtype>
struct ElementOf {
  static_assert(kDtype == FLASH3_FLOAT16 || kDtype == FLASH3_BFLOAT16, "16-bit inputs");
  using Type = std::conditional_t<kDtype == FLASH3_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
};

// What the host code has to know of a kernel.
template <class Traits>
FwdKernel describe_kernel(void (*function)(device::FwdArgs)) {
  FwdKernel kernel;
  kernel.function = reinterpret_cast<const void *>(function);
  kernel.shared_bytes = Traits::kSharedBytes;
  kernel.is_short = Traits::kConfig.is_short();
  kernel.most_added_up = Traits::kMostAddedUp;
  kernel.is_resident = Traits::kConfig.is_resident();
  kernel.streams = Traits::kStreams;
  kernel.blocks_per_sm = Traits::kConfig.blocks_per_sm;
  kernel.cluster_blocks = Traits::kCtas;
  kernel.paired = Traits::kPaired;
  kernel.threads = Traits::kThreads;
  kernel.head_dim = Traits::kConfig.head_dim;
  kernel.head_dim_v = Traits::kConfig.head_dim_v;
  kernel.block_m = Traits::kBlockM;
  kernel.block_n = Traits::kBlockN;
  kernel.box_cols = Traits::kBoxCols;
  kernel.swizzle_bytes = Traits::kSwizzleBytes;
  return kernel;
}

template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod, bool kVarlen>
FwdKernel fwd_kernel() {
  using Element = typename ElementOf<kDtype>::Type;
  constexpr core::TileConfig kConfig = core::kTileConfigs[kConfigIndex];
  if constexpr (kConfig.is_wide()) {
    using Traits = device::WideTraits<Element, kConfigIndex, kScoreMod, kVarlen>;
    return describe_kernel<Traits>(&device::wide_fwd_kernel_sm90<Traits>);
  } else {
    using Traits = device::TileTraits<Element, kConfigIndex, kScoreMod, kVarlen>;
    if constexpr (kConfig.is_short()) {
      return describe_kernel<Traits>(&device::short_fwd_kernel_sm90<Traits>);
    } else {
      return describe_kernel<Traits>(&device::fwd_kernel_sm90<Traits>);
    }
  }
}

template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod, bool kVarlen>
FwdKernel resident_kernel() {
  using Traits = device::ResidentTraits<typename ElementOf<kDtype>::Type, kConfigIndex, kScoreMod, kVarlen>;
  return describe_kernel<Traits>(&device::resident_fwd_kernel_sm90<Traits>);
}

template <flash3_dtype kDtype, int kConfigIndex, bool kVarlen>
FwdKernel capped_kernel() {
  using Element = typename ElementOf<kDtype>::Type;
  using Traits = device::TileTraits<Element, kConfigIndex, true, kVarlen, false, false, false, true>;
  return describe_kernel<Traits>(&device::fwd_kernel_sm90<Traits>);
}

template <flash3_dtype kDtype, int kConfigIndex>
FwdKernel paired_kernel() {
  using Traits = device::TileTraits<typename ElementOf<kDtype>::Type, kConfigIndex, false, false, false, true>;
  return describe_kernel<Traits>(&device::fwd_kernel_sm90<Traits>);
}

template <flash3_dtype kDtype, int kConfigIndex, bool kScoreMod>
FwdKernel cache_kernel() {
  using Traits = device::TileTraits<typename ElementOf<kDtype>::Type, kConfigIndex, kScoreMod, true, true>;
  return describe_kernel<Traits>(&device::fwd_kernel_sm90<Traits>);
}

template <flash3_dtype kDtype, int kConfigIndex>
FwdKernel pieces_kernel() {
  using Traits = device::TileTraits<typename ElementOf<kDtype>::Type, kConfigIndex, false, true, true, false, true>;
  return describe_kernel<Traits>(&device::fwd_kernel_sm90<Traits>);
}

}  // namespace flash3::launch

// Compiles every kernel of one tile config.
#define FLASH3_INSTANTIATE(dtype, config)                       \
  template FwdKernel fwd_kernel<dtype, config, false, false>(); \
  template FwdKernel fwd_kernel<dtype, config, false, true>();  \
  template FwdKernel fwd_kernel<dtype, config, true, false>();  \
  template FwdKernel fwd_kernel<dtype, config, true, true>()

#define FLASH3_INSTANTIATE_CAPPED(dtype, config)            \
  template FwdKernel capped_kernel<dtype, config, false>(); \
  template FwdKernel capped_kernel<dtype, config, true>()

#define FLASH3_INSTANTIATE_PAIRED(dtype, config) template FwdKernel paired_kernel<dtype, config>()

#define FLASH3_INSTANTIATE_RESIDENT(dtype, config)                   \
  template FwdKernel resident_kernel<dtype, config, false, false>(); \
  template FwdKernel resident_kernel<dtype, config, false, true>();  \
  template FwdKernel resident_kernel<dtype, config, true, false>();  \
  template FwdKernel resident_kernel<dtype, config, true, true>()

#define FLASH3_INSTANTIATE_CACHE(dtype, config)            \
  template FwdKernel cache_kernel<dtype, config, false>(); \
  template FwdKernel cache_kernel<dtype, config, true>();  \
  template FwdKernel pieces_kernel<dtype, config>()
