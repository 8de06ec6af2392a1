#include "launch/kernel_table.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/call_facts.h"
#include "core/tile_config.h"
#include "launch/fwd.h"

namespace flash3::launch {
namespace {

struct Entry {
  flash3_dtype dtype;
  int32_t config;               // of core::kTileConfigs
  FwdKernel kernels[2][2];      // [modified scores][lengths from device memory]
  FwdKernel paired, capped[2];  // of a config that has them; [lengths from device memory]
};

template <flash3_dtype kDtype, int kConfig>
FwdKernel paired_if_there() {
  if constexpr (core::kTileConfigs[kConfig].pairs) return paired_kernel<kDtype, kConfig>();
  return {};
}
template <flash3_dtype kDtype, int kConfig, bool kVarlen>
FwdKernel capped_if_there() {
  if constexpr (core::kTileConfigs[kConfig].has_capped_kernel()) return capped_kernel<kDtype, kConfig, kVarlen>();
  return {};
}

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
#ifdef FLASH3_HAS_FP16_HDIM512
      {FLASH3_FLOAT16, 512},
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
#ifdef FLASH3_HAS_BF16_HDIM512
      {FLASH3_BFLOAT16, 512},
#endif
#ifdef FLASH3_HAS_FP16_HDIM576
      {FLASH3_FLOAT16, 576},
#endif
#ifdef FLASH3_HAS_BF16_HDIM576
      {FLASH3_BFLOAT16, 576},
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
  if constexpr (!is_built(kDtype, core::kTileConfigs[kConfig].head_dim)) {
    return {kDtype, -1, {}, {}, {}};
  } else if constexpr (core::kTileConfigs[kConfig].is_resident()) {
    return {kDtype,
            kConfig,
            {{resident_kernel<kDtype, kConfig, false, false>(), resident_kernel<kDtype, kConfig, false, true>()},
             {resident_kernel<kDtype, kConfig, true, false>(), resident_kernel<kDtype, kConfig, true, true>()}},
            {},
            {}};
  } else {
    return {kDtype,
            kConfig,
            {{fwd_kernel<kDtype, kConfig, false, false>(), fwd_kernel<kDtype, kConfig, false, true>()},
             {fwd_kernel<kDtype, kConfig, true, false>(), fwd_kernel<kDtype, kConfig, true, true>()}},
            paired_if_there<kDtype, kConfig>(),
            {capped_if_there<kDtype, kConfig, false>(), capped_if_there<kDtype, kConfig, true>()}};
  }
}

struct CacheEntry {
  flash3_dtype dtype;
  int32_t config;        // of core::kCacheConfigs
  FwdKernel kernels[2];  // [modified scores]
  FwdKernel pieces;
};

template <flash3_dtype kDtype, int kConfig>
CacheEntry cache_entry_if_built() {
  if constexpr (is_built(kDtype, core::kCacheConfigs[kConfig].head_dim)) {
    return {kDtype,
            kConfig,
            {cache_kernel<kDtype, kConfig, false>(), cache_kernel<kDtype, kConfig, true>()},
            pieces_kernel<kDtype, kConfig>()};
  }
  return {kDtype, -1, {}, {}};
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

template <flash3_dtype kDtype>
const SplitKernel *latent_kernel() {
  if constexpr (is_built(kDtype, core::kLatentHeadDim)) {
    static const SplitKernel kernel = mla_kernel<kDtype>();
    return &kernel;
  }
  return nullptr;
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
  const bool packed_q = p.cu_seqlens_q != nullptr;
  const bool packed_k = p.cu_seqlens_k != nullptr;
  core::Workload work;
  work.mask = {core::Window::make(p.window_left, p.window_right), static_cast<int32_t>(core::mean_queries(p)),
               packed_k ? core::ceil_div(static_cast<int32_t>(p.total_k), p.batch) : static_cast<int32_t>(p.seqlen_k)};
  work.q_vary = packed_q && p.batch > 1;
  work.k_vary = packed_k && p.batch > 1;
  const auto longest = [](bool varies, int64_t hint, int64_t mean, int64_t unknown) {
    return !varies ? mean : hint > 0 ? hint : unknown;
  };
  work.longest_q = longest(work.q_vary, p.max_seqlen_q, work.mask.seqlen_q, 2 * int64_t{work.mask.seqlen_q});
  work.longest_k = longest(work.k_vary, p.max_seqlen_k, work.mask.seqlen_k, INT64_MAX);
  work.sequences = p.batch;
  work.columns = int64_t{p.batch} * p.nheads;
  work.kv_columns = int64_t{p.batch} * p.nheads_k;
  work.multiprocessors = multiprocessors;
  work.packed_q = packed_q;
  work.device_lengths = core::has_device_lengths(p);
  work.modifies_scores = core::modifies_scores(p);
  return work;
}

// Among the kernels of a dtype one of the narrowest class that holds the head dims, NULL where there is none: a wider
// kernel computes narrower heads just as well, if the right one was left out of the build.
const core::TileConfig *narrowest_class(const flash3_params &p) {
  const core::TileConfig *best = nullptr;
  for (const Entry &e : table().entries) {
    const core::TileConfig &config = core::kTileConfigs[e.config];
    if (e.dtype != p.dtype || config.head_dim < p.head_dim || config.head_dim_v < p.head_dim_v) continue;
    if (best == nullptr || &config < best) best = &config;  // classes come in this order
  }
  return best;
}

// The same among the kernels for caches.
const CacheEntry *narrowest_cache_class(const flash3_params &p) {
  for (const CacheEntry &e : table().cache) {
    const core::TileConfig &config = core::kCacheConfigs[e.config];
    if (e.dtype == p.dtype && config.head_dim >= p.head_dim && config.head_dim_v >= p.head_dim_v) return &e;
  }
  return nullptr;
}

bool takes_values_from_keys(const flash3_params &p) { return p.v == nullptr && p.k != nullptr; }

core::Status no_kernel(const flash3_params &params) {
  if (takes_values_from_keys(params)) {
    return core::error(FLASH3_UNSUPPORTED, "v is NULL with head_dim ", params.head_dim, " and head_dim_v ",
                       params.head_dim_v, "; no kernel of this build takes the values from k");
  }
  return core::error(FLASH3_UNSUPPORTED, "dtype ", params.dtype == FLASH3_FLOAT16 ? "float16" : "bfloat16",
                     " with head_dim ", params.head_dim, " and head_dim_v ", params.head_dim_v,
                     " has no kernel in this build, which has: ", built_kernels());
}

}  // namespace

core::Status find_kernel(const flash3_params &params, const core::Route &route, int32_t multiprocessors, bool may_pair,
                         const FwdKernel **kernel) {
  const bool score_mod = core::modifies_scores(params);
  if (core::has_kv_cache(params) || route.in_pieces()) {
    const CacheEntry *const found = narrowest_cache_class(params);
    if (found == nullptr || takes_values_from_keys(params)) return no_kernel(params);
    *kernel = route.in_pieces() ? &found->pieces : &found->kernels[score_mod];
    return {};
  }
  const core::TileConfig *const member = narrowest_class(params);
  if (member == nullptr || takes_values_from_keys(params)) return no_kernel(params);
  const core::Workload work = workload(params, multiprocessors);
  const int32_t chosen = core::cheapest_config(*member, work);
  const bool varlen = core::has_device_lengths(params);
  const bool paired = may_pair && core::takes_pairs(core::kTileConfigs[chosen], work);
  const bool capped = core::has_softcap_alone(params) && core::kTileConfigs[chosen].has_capped_kernel();
  for (const Entry &e : table().entries) {
    if (e.dtype != params.dtype || e.config != chosen) continue;
    *kernel = paired ? &e.paired : capped ? &e.capped[varlen] : &e.kernels[score_mod][varlen];
  }
  return {};
}

core::Status find_split_kernel(const flash3_params &params, const SplitKernel **kernel) {
  if (core::is_latent(params)) {
    *kernel = params.dtype == FLASH3_FLOAT16 ? latent_kernel<FLASH3_FLOAT16>() : latent_kernel<FLASH3_BFLOAT16>();
    return *kernel != nullptr ? core::Status{} : no_kernel(params);
  }
  const int32_t wider = std::max(params.head_dim, params.head_dim_v);
  const SplitEntry *best = nullptr;
  for (const SplitEntry &e : table().split) {
    if (e.dtype != params.dtype || e.kernel.head_dim < wider || takes_values_from_keys(params)) continue;
    if (best == nullptr || e.kernel.head_dim < best->kernel.head_dim) best = &e;
  }
  if (best == nullptr) {
    if (wider > core::kMostSplitDim && !takes_values_from_keys(params)) {
      return core::error(FLASH3_UNSUPPORTED, "head_dim ", params.head_dim, " and head_dim_v ", params.head_dim_v,
                         " with a KV cache or num_splits > 1: the CUDA backend takes at most ", core::kMostSplitDim);
    }
    return no_kernel(params);
  }
  *kernel = &best->kernel;
  return {};
}

core::Route built_route(const flash3_params &params) {
  const core::Route route = core::route_of(params);
  if (core::has_kv_cache(params) || params.num_splits > 1 || core::is_latent(params)) return route;
  const SplitKernel *kernel = nullptr;
  const bool splits = route.split || route.pieces.count > 1;  // what is merged needs a kernel of theirs, too
  const bool missing = (splits && !find_split_kernel(params, &kernel).ok()) ||
                       (route.in_pieces() && narrowest_cache_class(params) == nullptr);
  return missing ? core::Route{false, {1, 1, 0}} : route;
}

const char *built_kernels() {
  return "archs=" FLASH3_BUILT_ARCHS "\ndtypes=" FLASH3_BUILT_DTYPES "\nhead_dims=" FLASH3_BUILT_HEAD_DIMS
         "\ncuda=" FLASH3_BUILT_CUDA;
}

}  // namespace flash3::launch
