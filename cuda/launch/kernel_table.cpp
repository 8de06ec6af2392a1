#include "launch/kernel_table.h"

#include "core/tile_config.h"
#include "launch/fwd.h"

namespace flash3::launch {
namespace {

struct Entry {
  flash3_dtype dtype;
  int32_t head_dim;
  FwdKernel kernel;
};

// The build defines FLASH3_HAS_<dtype>_HDIM<d> for every instantiation that it compiles.
const Entry *table_begin() {
  static const Entry entries[] = {
#define FLASH3_ENTRY(dtype, head_dim) {dtype, head_dim, fwd_kernel<dtype, head_dim>()}
#ifdef FLASH3_HAS_FP16_HDIM64
      FLASH3_ENTRY(FLASH3_FLOAT16, 64),
#endif
#ifdef FLASH3_HAS_FP16_HDIM96
      FLASH3_ENTRY(FLASH3_FLOAT16, 96),
#endif
#ifdef FLASH3_HAS_FP16_HDIM128
      FLASH3_ENTRY(FLASH3_FLOAT16, 128),
#endif
#ifdef FLASH3_HAS_FP16_HDIM192
      FLASH3_ENTRY(FLASH3_FLOAT16, 192),
#endif
#ifdef FLASH3_HAS_FP16_HDIM256
      FLASH3_ENTRY(FLASH3_FLOAT16, 256),
#endif
#ifdef FLASH3_HAS_BF16_HDIM64
      FLASH3_ENTRY(FLASH3_BFLOAT16, 64),
#endif
#ifdef FLASH3_HAS_BF16_HDIM96
      FLASH3_ENTRY(FLASH3_BFLOAT16, 96),
#endif
#ifdef FLASH3_HAS_BF16_HDIM128
      FLASH3_ENTRY(FLASH3_BFLOAT16, 128),
#endif
#ifdef FLASH3_HAS_BF16_HDIM192
      FLASH3_ENTRY(FLASH3_BFLOAT16, 192),
#endif
#ifdef FLASH3_HAS_BF16_HDIM256
      FLASH3_ENTRY(FLASH3_BFLOAT16, 256),
#endif
#undef FLASH3_ENTRY
      {FLASH3_FLOAT16, 0, FwdKernel{}},  // end mark
  };
  return entries;
}

}  // namespace

core::Status find_kernel(const flash3_params &params, const FwdKernel **kernel) {
  const core::TileConfig *config = core::tile_config(params.head_dim, params.head_dim_v);
  // A wider kernel computes narrower heads just as well, if the right one was left out of the build.
  const int32_t at_least = config != nullptr ? config->head_dim : core::kMaxHeadDim + 1;
  const Entry *best = nullptr;
  for (const Entry *e = table_begin(); e->head_dim != 0; ++e) {
    if (e->dtype != params.dtype || e->head_dim < at_least) continue;
    if (best == nullptr || e->head_dim < best->head_dim) best = e;
  }
  if (best == nullptr) {
    return core::error(FLASH3_UNSUPPORTED, "dtype ", params.dtype == FLASH3_FLOAT16 ? "float16" : "bfloat16",
                       " with head_dim ", params.head_dim, " and head_dim_v ", params.head_dim_v,
                       " has no kernel in this build, which has: ", built_kernels());
  }
  *kernel = &best->kernel;
  return {};
}

const char *built_kernels() {
  return "archs=" FLASH3_BUILT_ARCHS "\ndtypes=" FLASH3_BUILT_DTYPES "\nhead_dims=" FLASH3_BUILT_HEAD_DIMS
         "\ncuda=" FLASH3_BUILT_CUDA;
}

}  // namespace flash3::launch
