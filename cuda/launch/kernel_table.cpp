#include "launch/kernel_table.h"

#include "core/tile_config.h"
#include "launch/fwd.h"

namespace flash3::launch {
namespace {

struct Entry {
  flash3_dtype dtype;
  int32_t config;           // of core::kTileConfigs; -1 marks the end
  FwdKernel kernels[2][2];  // [modified scores][lengths from device memory]
};

template <flash3_dtype kDtype, int kConfig>
Entry entry() {
  return {kDtype,
          kConfig,
          {{fwd_kernel<kDtype, kConfig, false, false>(), fwd_kernel<kDtype, kConfig, false, true>()},
           {fwd_kernel<kDtype, kConfig, true, false>(), fwd_kernel<kDtype, kConfig, true, true>()}}};
}

// The build defines FLASH3_HAS_<dtype>_HDIM<d> for every instantiation that it compiles.
const Entry *table_begin() {
  static const Entry entries[] = {
#define FLASH3_ENTRY(dtype, config) entry<dtype, config>()
#ifdef FLASH3_HAS_FP16_HDIM64
      FLASH3_ENTRY(FLASH3_FLOAT16, 0),  FLASH3_ENTRY(FLASH3_FLOAT16, 1),
#endif
#ifdef FLASH3_HAS_FP16_HDIM96
      FLASH3_ENTRY(FLASH3_FLOAT16, 2),
#endif
#ifdef FLASH3_HAS_FP16_HDIM128
      FLASH3_ENTRY(FLASH3_FLOAT16, 3),
#endif
#ifdef FLASH3_HAS_FP16_HDIM192
      FLASH3_ENTRY(FLASH3_FLOAT16, 4),
#endif
#ifdef FLASH3_HAS_FP16_HDIM256
      FLASH3_ENTRY(FLASH3_FLOAT16, 5),
#endif
#ifdef FLASH3_HAS_BF16_HDIM64
      FLASH3_ENTRY(FLASH3_BFLOAT16, 0), FLASH3_ENTRY(FLASH3_BFLOAT16, 1),
#endif
#ifdef FLASH3_HAS_BF16_HDIM96
      FLASH3_ENTRY(FLASH3_BFLOAT16, 2),
#endif
#ifdef FLASH3_HAS_BF16_HDIM128
      FLASH3_ENTRY(FLASH3_BFLOAT16, 3),
#endif
#ifdef FLASH3_HAS_BF16_HDIM192
      FLASH3_ENTRY(FLASH3_BFLOAT16, 4),
#endif
#ifdef FLASH3_HAS_BF16_HDIM256
      FLASH3_ENTRY(FLASH3_BFLOAT16, 5),
#endif
#undef FLASH3_ENTRY
      {FLASH3_FLOAT16, -1, {}},
  };
  return entries;
}

// Of a sequence of the mean length; the lengths of a packed call are only known on the device.
core::Mask typical_mask(const flash3_params &p) {
  const int64_t seqlen_q = p.cu_seqlens_q != nullptr ? (p.total_q + p.batch - 1) / p.batch : p.seqlen_q;
  const int64_t seqlen_k = p.cu_seqlens_k != nullptr ? (p.total_k + p.batch - 1) / p.batch : p.seqlen_k;
  return {core::Window::make(p.window_left, p.window_right), static_cast<int32_t>(seqlen_q),
          static_cast<int32_t>(seqlen_k)};
}

// Among the kernels of a dtype the narrowest class of at least that head dim, which is 0 where there is none: a wider
// kernel computes narrower heads just as well, if the right one was left out of the build.
int32_t narrowest_class(flash3_dtype dtype, int32_t at_least) {
  int32_t best = 0;
  for (const Entry *e = table_begin(); e->config >= 0; ++e) {
    const int32_t head_dim = core::kTileConfigs[e->config].head_dim;
    if (e->dtype == dtype && head_dim >= at_least && (best == 0 || head_dim < best)) best = head_dim;
  }
  return best;
}

}  // namespace

core::Status find_kernel(const flash3_params &params, const FwdKernel **kernel) {
  const core::TileConfig *config = core::tile_config(params.head_dim, params.head_dim_v);
  const auto dtype = static_cast<flash3_dtype>(params.dtype);
  const int32_t head_dim = narrowest_class(dtype, config != nullptr ? config->head_dim : core::kMaxHeadDim + 1);
  if (head_dim == 0) {
    return core::error(FLASH3_UNSUPPORTED, "dtype ", params.dtype == FLASH3_FLOAT16 ? "float16" : "bfloat16",
                       " with head_dim ", params.head_dim, " and head_dim_v ", params.head_dim_v,
                       " has no kernel in this build, which has: ", built_kernels());
  }
  const int32_t chosen = core::cheapest_config(head_dim, typical_mask(params));
  // The softmax of the plain kernels relies on scores that grow with the product.
  const bool score_mod = params.softcap > 0.f || params.alibi_slopes != nullptr || !(params.softmax_scale > 0.f);
  const bool varlen = params.cu_seqlens_q != nullptr || params.cu_seqlens_k != nullptr || params.seqused_q != nullptr ||
                      params.seqused_k != nullptr;
  for (const Entry *e = table_begin(); e->config >= 0; ++e) {
    if (e->dtype == dtype && e->config == chosen) *kernel = &e->kernels[score_mod][varlen];
  }
  return {};
}

const char *built_kernels() {
  return "archs=" FLASH3_BUILT_ARCHS "\ndtypes=" FLASH3_BUILT_DTYPES "\nhead_dims=" FLASH3_BUILT_HEAD_DIMS
         "\ncuda=" FLASH3_BUILT_CUDA;
}

}  // namespace flash3::launch
