#include "launch/kernel_table.h"

#include <utility>
#include <vector>

#include "core/tile_config.h"
#include "launch/fwd.h"

namespace flash3::launch {
namespace {

struct Entry {
  flash3_dtype dtype;
  int32_t config;           // of core::kTileConfigs
  FwdKernel kernels[2][2];  // [modified scores][lengths from device memory]
};

// The build defines FLASH3_HAS_<dtype>_HDIM<d> for every instantiation that it compiles.
constexpr bool is_built(flash3_dtype dtype, int32_t head_dim) {
  constexpr struct {
    flash3_dtype dtype;
    int32_t head_dim;
  } kBuilt[] = {
#ifdef FLASH3_HAS_FP16_HDIM64
      {FLASH3_FLOAT16, 64},
#endif
#ifdef FLASH3_HAS_FP16_HDIM96
      {FLASH3_FLOAT16, 96},
#endif
#ifdef FLASH3_HAS_FP16_HDIM128
      {FLASH3_FLOAT16, 128},
#endif
#ifdef FLASH3_HAS_FP16_HDIM192
      {FLASH3_FLOAT16, 192},
#endif
#ifdef FLASH3_HAS_FP16_HDIM256
      {FLASH3_FLOAT16, 256},
#endif
#ifdef FLASH3_HAS_BF16_HDIM64
      {FLASH3_BFLOAT16, 64},
#endif
#ifdef FLASH3_HAS_BF16_HDIM96
      {FLASH3_BFLOAT16, 96},
#endif
#ifdef FLASH3_HAS_BF16_HDIM128
      {FLASH3_BFLOAT16, 128},
#endif
#ifdef FLASH3_HAS_BF16_HDIM192
      {FLASH3_BFLOAT16, 192},
#endif
#ifdef FLASH3_HAS_BF16_HDIM256
      {FLASH3_BFLOAT16, 256},
#endif
      {FLASH3_FLOAT16, 0},
  };
  for (const auto &built : kBuilt) {
    if (built.dtype == dtype && built.head_dim == head_dim) return true;
  }
  return false;
}

template <flash3_dtype kDtype, int kConfig>
Entry entry_if_built() {
  if constexpr (is_built(kDtype, core::kTileConfigs[kConfig].head_dim)) {
    return {kDtype,
            kConfig,
            {{fwd_kernel<kDtype, kConfig, false, false>(), fwd_kernel<kDtype, kConfig, false, true>()},
             {fwd_kernel<kDtype, kConfig, true, false>(), fwd_kernel<kDtype, kConfig, true, true>()}}};
  }
  return {kDtype, -1, {}};
}

struct CacheEntry {
  flash3_dtype dtype;
  int32_t config;        // of core::kCacheConfigs
  FwdKernel kernels[2];  // [modified scores]
};

template <flash3_dtype kDtype, int kConfig>
CacheEntry cache_entry_if_built() {
  if constexpr (is_built(kDtype, core::kCacheConfigs[kConfig].head_dim)) {
    return {kDtype, kConfig, {cache_kernel<kDtype, kConfig, false>(), cache_kernel<kDtype, kConfig, true>()}};
  }
  return {kDtype, -1, {}};
}

struct SplitEntry {
  flash3_dtype dtype;
  int32_t config;  // of core::kSplitConfigs
  SplitKernel kernel;
};

template <flash3_dtype kDtype, int kConfig>
SplitEntry split_entry_if_built() {
  if constexpr (is_built(kDtype, core::kSplitConfigs[kConfig].head_dim)) {
    return {kDtype, kConfig, split_kernel<kDtype, kConfig>()};
  }
  return {kDtype, -1, {}};
}

struct Table {
  std::vector<Entry> entries;
  std::vector<CacheEntry> cache;
  std::vector<SplitEntry> split;

  template <int... kConfigs, int... kCacheConfigs, int... kSplitConfigs>
  Table(std::integer_sequence<int, kConfigs...>, std::integer_sequence<int, kCacheConfigs...>,
        std::integer_sequence<int, kSplitConfigs...>) {
    for (const Entry &e :
         {entry_if_built<FLASH3_FLOAT16, kConfigs>()..., entry_if_built<FLASH3_BFLOAT16, kConfigs>()...}) {
      if (e.config >= 0) entries.push_back(e);
    }
    for (const CacheEntry &e : {cache_entry_if_built<FLASH3_FLOAT16, kCacheConfigs>()...,
                                cache_entry_if_built<FLASH3_BFLOAT16, kCacheConfigs>()...}) {
      if (e.config >= 0) cache.push_back(e);
    }
    for (const SplitEntry &e : {split_entry_if_built<FLASH3_FLOAT16, kSplitConfigs>()...,
                                split_entry_if_built<FLASH3_BFLOAT16, kSplitConfigs>()...}) {
      if (e.config >= 0) split.push_back(e);
    }
  }
};

const Table &table() {
  static const Table built(std::make_integer_sequence<int, core::kNumTileConfigs>{},
                           std::make_integer_sequence<int, core::kNumCacheConfigs>{},
                           std::make_integer_sequence<int, core::kNumSplitConfigs>{});
  return built;
}

// The lengths as far as they are known here: those of a packed call are in device memory.
core::Workload workload(const flash3_params &p, int32_t multiprocessors) {
  const auto mean = [&](int64_t total) { return core::ceil_div(static_cast<int32_t>(total), p.batch); };
  const bool packed_q = p.cu_seqlens_q != nullptr;
  const bool packed_k = p.cu_seqlens_k != nullptr;
  core::Workload work;
  work.mask = {core::Window::make(p.window_left, p.window_right),
               packed_q ? mean(p.total_q) : static_cast<int32_t>(p.seqlen_q),
               packed_k ? mean(p.total_k) : static_cast<int32_t>(p.seqlen_k)};
  work.q_vary = packed_q && p.batch > 1;
  work.k_vary = packed_k && p.batch > 1;
  const int64_t guess = work.q_vary ? 2 * int64_t{work.mask.seqlen_q} : work.mask.seqlen_q;
  work.longest_q = packed_q && p.max_seqlen_q > 0 ? p.max_seqlen_q : guess;
  work.columns = int64_t{p.batch} * p.nheads;
  work.multiprocessors = multiprocessors;
  return work;
}

// Among the kernels of a dtype the narrowest class of at least that head dim, which is 0 where there is none: a wider
// kernel computes narrower heads just as well, if the right one was left out of the build.
int32_t narrowest_class(flash3_dtype dtype, int32_t at_least) {
  int32_t best = 0;
  for (const Entry &e : table().entries) {
    const int32_t head_dim = core::kTileConfigs[e.config].head_dim;
    if (e.dtype == dtype && head_dim >= at_least && (best == 0 || head_dim < best)) best = head_dim;
  }
  return best;
}

// The class of head dims whose kernels compute a call.
core::Status find_class(const flash3_params &params, int32_t *head_dim) {
  const core::TileConfig *config = core::tile_config(params.head_dim, params.head_dim_v);
  *head_dim = narrowest_class(static_cast<flash3_dtype>(params.dtype),
                              config != nullptr ? config->head_dim : core::kMaxHeadDim + 1);
  if (*head_dim != 0) return {};
  return core::error(FLASH3_UNSUPPORTED, "dtype ", params.dtype == FLASH3_FLOAT16 ? "float16" : "bfloat16",
                     " with head_dim ", params.head_dim, " and head_dim_v ", params.head_dim_v,
                     " has no kernel in this build, which has: ", built_kernels());
}

}  // namespace

core::Status find_kernel(const flash3_params &params, int32_t multiprocessors, const FwdKernel **kernel) {
  int32_t head_dim = 0;
  const core::Status status = find_class(params, &head_dim);
  if (!status.ok()) return status;
  // The softmax of the plain kernels relies on scores that grow with the product.
  const bool score_mod = params.softcap > 0.f || params.alibi_slopes != nullptr || !(params.softmax_scale > 0.f);
  if (core::has_kv_cache(params)) {
    for (const CacheEntry &e : table().cache) {
      if (e.dtype == params.dtype && e.kernels[0].head_dim == head_dim) *kernel = &e.kernels[score_mod];
    }
    return {};
  }
  const int32_t chosen = core::cheapest_config(head_dim, workload(params, multiprocessors));
  const bool varlen = params.cu_seqlens_q != nullptr || params.cu_seqlens_k != nullptr || params.seqused_q != nullptr ||
                      params.seqused_k != nullptr;
  for (const Entry &e : table().entries) {
    if (e.dtype == params.dtype && e.config == chosen) *kernel = &e.kernels[score_mod][varlen];
  }
  return {};
}

core::Status find_split_kernel(const flash3_params &params, const SplitKernel **kernel) {
  int32_t head_dim = 0;
  const core::Status status = find_class(params, &head_dim);
  if (!status.ok()) return status;
  for (const SplitEntry &e : table().split) {
    if (e.dtype == params.dtype && e.kernel.head_dim == head_dim) *kernel = &e.kernel;
  }
  return {};
}

const char *built_kernels() {
  return "archs=" FLASH3_BUILT_ARCHS "\ndtypes=" FLASH3_BUILT_DTYPES "\nhead_dims=" FLASH3_BUILT_HEAD_DIMS
         "\ncuda=" FLASH3_BUILT_CUDA;
}

}  // namespace flash3::launch
