#include "launch/split.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "core/call_facts.h"
#include "core/constants.h"
#include "core/split_config.h"
#include "core/workspace.h"
#include "device/split_args.h"
#include "launch/append.h"
#include "launch/cache.h"
#include "launch/clusters.h"
#include "launch/kernel_table.h"
#include "launch/merge.h"
#include "launch/shared_memory.h"
#include "launch/start.h"
#include "launch/tensor_map.h"

namespace flash3::launch {
namespace {

using device::KeyLoads;

// Rows of an entry of k and v: of a page, of a sequence's cache, or of all packed keys.
int64_t rows_of_entry(const flash3_params &p) {
  if (p.page_table != nullptr) return p.page_size;
  return p.cu_seqlens_k != nullptr ? p.total_k : p.seqlen_k;
}

// Whether a key block is one box of the copy engine.
KeyLoads key_loads(const flash3_params &p, const SplitKernel &kernel) {
  if (rows_of_entry(p) == 0) return KeyLoads::kAsyncCopy;  // nothing is loaded, and no map made of nothing
  if (p.page_table == nullptr || core::is_latent(p)) return KeyLoads::kTma;
  const bool whole_blocks = p.page_size % kernel.block_n == 0 && p.cache_leftpad == nullptr;
  return whole_blocks ? KeyLoads::kTma : KeyLoads::kAsyncCopy;
}

const SplitLaunch &launch_of(const flash3_params &p, const SplitKernel &kernel, KeyLoads loads) {
  if (loads != KeyLoads::kTma) return kernel.rows;
  return core::computed_by_warps(p) && p.page_table == nullptr ? kernel.dense_for_warps : kernel.boxes;
}

// Whether no sequence has more than some key blocks: short enough that merging counts most.
bool has_few_keys(const flash3_params &p, const core::SplitSchedule &s) {
  constexpr int64_t kFewBlocks = 64;
  return core::most_keys(p) / s.block_n <= kFewBlocks;
}

core::SplitSchedule make_schedule(const flash3_params &p, const SplitKernel &kernel, const core::SplitFlight &how,
                                  int32_t multiprocessors) {
  core::SplitSchedule s;
  s.q = core::q_side(p);
  s.k = core::KvCache::of(p);
  s.window = core::sees_all_keys(p) ? core::Window{-1, -1} : core::Window::make(p.window_left, p.window_right);
  s.one_tile = core::has_one_tile(p);
  s.group = core::Divisor::make(p.nheads / p.nheads_k);
  s.nheads_k = p.nheads_k;
  s.batch = p.batch;
  s.block_n = kernel.block_n;
  s.num_splits = p.num_splits;
  s.block_m = core::SplitSchedule::kBlockM * core::blocks_of_tile(p);
  const int32_t blocks =
      std::min(std::max(multiprocessors * how.blocks_per_sm / core::blocks_of_tile(p), 1), core::most_parts(p));
  s.num_lines = core::SplitSchedule::lines(p.nheads_k, blocks);
  s.heads_of_line = p.nheads_k / s.num_lines;
  s.parts_of_line = blocks / s.num_lines;
  // Without an odd one all may be in pairs.
  const bool all_may_be_cut = int64_t{2} * s.batch * s.heads_of_line <= s.parts_of_line;
  if (all_may_be_cut && has_few_keys(p, s) && core::merges_in_clusters(p)) s.parts_of_line &= ~1;
  // The line of a balanced schedule has 32-bit places, whatever cu_seqlens_q holds.
  const core::SplitBounds bounds = core::SplitBounds::of(p);
  const int64_t most_key_blocks = s.k.filled.rows / s.block_n + 2;  // of a sequence, whatever the caller says
  if (s.balanced() && bounds.most_tiles > core::SplitSchedule::kMostPlaces / most_key_blocks) s.num_splits = 1;
  if (core::is_packed_decoding(p)) core::pack_few(p, &s);
  if (s.balanced() && core::is_plain_decoding(p) && !core::is_latent(p)) {
    s.allow_even_cuts();
    s.allow_lone_blocks(how.blocks_per_sm, bounds.tile_rows);
  }
  return s;
}

// The cost of a line up to which K and V are marked as the first to leave L2. What others have left there, much of it
// yet to be written to memory, then stays. More keys than these come quicker without the mark.
int32_t passing_cost(const flash3_params &p, const core::SplitSchedule &schedule) {
  constexpr int64_t kPassingBytes = int64_t{224} << 20;
  return static_cast<int32_t>(kPassingBytes / (core::block_bytes(p, schedule) * schedule.num_lines));
}

// Where results go, which is all that the merging needs of the arguments beside the schedule.
void set_results(const flash3_params &p, device::SplitArgs *args) {
  const bool packed_q = p.cu_seqlens_q != nullptr;
  args->out = {p.out, packed_q ? 0 : p.out_batch_stride, p.out_row_stride, p.out_head_stride};
  args->lse = p.lse;
  args->lse_batch_stride = packed_q ? 0 : p.lse_batch_stride;
  args->lse_head_stride = p.lse_head_stride;
  args->packed_q = packed_q;
  args->seqlen_q = p.seqlen_q;
  args->head_dim_v = p.head_dim_v;
  args->sinks = p.sinks;
}

// Rows of a box of latent attention: a key block, or as many of its rows as lie in one page.
int32_t latent_box_rows(const flash3_params &p) {
  return p.page_table != nullptr ? std::gcd(p.page_size, core::kLatentBlockN) : core::kLatentBlockN;
}

// What the kernel of latent attention does not compute.
core::Status check_latent(const flash3_params &p) {
  constexpr int32_t kLeastRows = 8;  // of a box: those that the swizzle moves
  if (p.v != nullptr) {
    return core::error(FLASH3_UNSUPPORTED, "head_dim ", p.head_dim, " with head_dim_v ", p.head_dim_v,
                       " has a kernel only where the values are columns of k; v must be NULL");
  }
  if (p.page_table == nullptr) return {};
  if (latent_box_rows(p) < kLeastRows) {
    return core::error(FLASH3_UNSUPPORTED, "page_size ", p.page_size, " with head_dim ", p.head_dim,
                       " has no kernel; it must be a multiple of ", kLeastRows);
  }
  if (p.cache_leftpad != nullptr) {
    return core::error(FLASH3_UNSUPPORTED, "cache_leftpad with page_table has no kernel for head_dim ", p.head_dim);
  }
  return {};
}

core::Status encode_maps(const flash3_params &p, const SplitKernel &kernel, device::SplitArgs *args) {
  const bool bf16 = p.dtype == FLASH3_BFLOAT16;
  const bool paged = p.page_table != nullptr;
  const int64_t rows = rows_of_entry(p);
  const int64_t entries = p.cu_seqlens_k != nullptr      ? 1
                          : paged                        ? p.num_pages
                          : p.cache_batch_idx != nullptr ? p.batch_cache
                                                         : p.batch;
  const bool latent = core::is_latent(p);
  args->box_rows = latent ? latent_box_rows(p) : kernel.block_n;
  const BoxShape box{kernel.box_cols, args->box_rows, kernel.swizzle_bytes, true};
  if (args->key_loads != KeyLoads::kTma) return {};
  core::Status status =
      encode_tensor_map({"k", args->k, p.head_dim, rows, p.nheads_k, entries}, bf16, box, &args->k_map);
  if (status.ok() && latent) return encode_zero_map(p.q, bf16, box, &args->kv_zero_map);
  if (status.ok()) {
    status = encode_tensor_map({"v", args->v, p.head_dim_v, rows, p.nheads_k, entries}, bf16, box, &args->v_map);
  }
  if (status.ok() && std::min(p.head_dim, p.head_dim_v) <= kernel.head_dim - kernel.box_cols) {
    status = encode_zero_map(p.q, bf16, box, &args->kv_zero_map);
  }
  return status;
}

// The schedule of a call may not be balanced although that was asked for; another kernel has it then.
bool appends_itself(const flash3_params &p, const core::SplitSchedule &schedule) {
  return core::appends_itself(p) && schedule.balanced();
}

core::Status make_args(const flash3_params &p, const SplitKernel &kernel, int32_t multiprocessors, int32_t *others,
                       device::SplitArgs *args) {
  const bool packed_k = p.cu_seqlens_k != nullptr;
  args->key_loads = key_loads(p, kernel);
  const SplitLaunch &how = launch_of(p, kernel, args->key_loads);
  args->schedule = make_schedule(p, kernel, how, multiprocessors);
  args->stages = how.stages;
  args->passing_cost = passing_cost(p, args->schedule);
  const bool appends = appends_itself(p, args->schedule);
  args->follows_append = has_append(p) && !appends;
  args->new_rows = {};
  if (appends) args->new_rows = {new_keys(p), new_values(p), core::Rotary::of(p)};
  args->few_rows = core::has_few_rows(p);
  args->modifies_scores = core::modifies_scores(p);
  args->q = appends ? given_queries(p) : queries(p);
  args->k = {p.k, packed_k ? 0 : p.k_batch_stride, p.k_row_stride, p.k_head_stride};
  args->v = {p.v, packed_k ? 0 : p.v_batch_stride, p.v_row_stride, p.v_head_stride};
  set_results(p, args);
  args->head_dim = p.head_dim;
  args->scale = p.softmax_scale;
  args->scale_log2 = p.softmax_scale * core::kLog2e;
  args->softcap = p.softcap;
  args->softcap_polynomial = core::SoftcapPolynomial::of_call(p.softmax_scale, p.softcap);
  args->alibi_slopes = p.alibi_slopes;
  args->alibi_batch_stride = p.alibi_batch_stride;
  args->zero = 0;
  args->partials = partials_of(p);
  args->schedule.leaves_longer = (args->others = others) != nullptr;
  return encode_maps(p, kernel, args);
}

const void *function_of(const flash3_params &p, const SplitKernel &kernel, const core::SplitSchedule &schedule,
                        bool appends) {
  if (!core::is_plain_decoding(p) || !schedule.balanced()) return kernel.function;
  const bool packed = core::is_packed_decoding(p);
  if (core::computed_by_warps(p)) {
    return appends ? kernel.appends_by_warps : packed ? kernel.packed_by_warps : kernel.by_warps;
  }
  if (appends) return kernel.appends;
  if (packed) return core::tiles_see_all_keys(p) ? kernel.packed_sees_all_keys : kernel.packed;
  return core::sees_all_keys(p) ? kernel.sees_all_keys : kernel.plain;
}

// Which thread blocks are clusters, if any, and what that makes of the schedule. Only such as all run at once: one that
// had to wait for others would be late.
cudaError_t form_clusters(const flash3_params &p, const SplitKernel &kernel, const void *function,
                          const core::SplitFlight &flight, int32_t device, int32_t multiprocessors,
                          core::SplitSchedule *schedule, Start *how) {
  constexpr unsigned kSizes[] = {8, 4};
  Start clustered = *how;
  int32_t clusters = 0;
  for (const unsigned size : kSizes) {
    if (!core::suits_clusters(p, *schedule, kernel.head_dim, size, multiprocessors)) continue;
    clustered.cluster = {1, size, 1};
    const cudaError_t error = resident_clusters(function, clustered, device, &clusters);
    if (error != cudaSuccess) return error;
    if (clusters < p.batch * p.nheads_k) continue;
    schedule->cut_for_clusters(static_cast<int32_t>(size));
    *how = clustered;
    return cudaSuccess;
  }
  // Where two thread blocks share a multiprocessor the memory is slower for clusters: 3 to 7 % of long calls.
  const bool pays = flight.blocks_per_sm == 1 || has_few_keys(p, *schedule);
  if (!pays || !core::may_merge_in_pairs(p, *schedule)) return cudaSuccess;
  clustered.cluster = {1, 2, 1};
  const cudaError_t error = resident_clusters(function, clustered, device, &clusters);
  if (error != cudaSuccess) return error;
  if (int64_t{2} * clusters < int64_t{schedule->num_lines} * schedule->parts_of_line) return cudaSuccess;
  core::allow_pairs(p, multiprocessors, schedule);
  *how = clustered;
  return cudaSuccess;
}

}  // namespace

device::Partials partials_of(const flash3_params &p) {
  const core::WorkspaceLayout layout = core::workspace_layout(p);
  char *const workspace = static_cast<char *>(p.workspace);
  device::Partials partials;
  partials.entries = reinterpret_cast<core::SplitEntry *>(workspace + layout.entries);
  partials.lse = reinterpret_cast<float *>(workspace + layout.lse_partial);
  partials.out = reinterpret_cast<float *>(workspace + layout.out_partial);
  partials.tile_rows = core::SplitBounds::of(p).tile_rows;
  partials.rows_of_split = core::query_rows(p) * p.nheads;
  return partials;
}

core::Status merge_pieces(const flash3_params &params, const SplitKernel &kernel, int32_t pieces,
                          const DeviceInfo &device, cudaStream_t stream) {
  // As if so many splits had been asked for.
  flash3_params split = params;
  split.num_splits = pieces;
  device::SplitArgs args = {};
  const SplitLaunch &how = launch_of(split, kernel, key_loads(split, kernel));
  args.schedule = make_schedule(split, kernel, how, device.multiprocessors);
  set_results(params, &args);
  args.partials = partials_of(params);
  const cudaError_t error = launch_merge(split, kernel, args, true, stream);
  if (error != cudaSuccess) return cuda_error("launching the merging of pieces", error);
  return {};
}

core::Status split_forward(const flash3_params &params, const DeviceInfo &device, cudaStream_t stream,
                           int32_t *others) {
  const SplitKernel *kernel = nullptr;
  core::Status status = find_split_kernel(params, &kernel);
  if (status.ok() && core::is_latent(params)) status = check_latent(params);
  if (!status.ok()) return status;
  constexpr int64_t kMostPieces = core::SplitSchedule::kMostPlaces;
  const int64_t pieces = core::SplitBounds::of(params).tiles * std::max(params.num_splits, 1);
  if (pieces >= kMostPieces) {
    return core::error(FLASH3_UNSUPPORTED, "batch ", params.batch, " with nheads ", params.nheads, " and num_splits ",
                       params.num_splits, " makes ", pieces, " pieces; below ", kMostPieces, " fit one call");
  }
  device::SplitArgs args;
  const int32_t multiprocessors = std::max(device.multiprocessors - params.sm_margin, 1);
  status = make_args(params, *kernel, multiprocessors, others, &args);
  if (!status.ok()) return status;
  const bool appends = appends_itself(params, args.schedule);
  const void *const function = function_of(params, *kernel, args.schedule, appends);
  const SplitLaunch &flight = launch_of(params, *kernel, args.key_loads);
  const uint32_t most_bytes =
      std::max({kernel->boxes.shared_bytes, kernel->rows.shared_bytes, kernel->dense_for_warps.shared_bytes});
  cudaError_t error = allow_shared_memory(function, most_bytes, device.ordinal);
  if (error != cudaSuccess) return cuda_error("setting the size of shared memory", error);
  Start how{{}, kernel->threads, flight.shared_bytes};
  error = form_clusters(params, *kernel, function, flight, device.ordinal, multiprocessors, &args.schedule, &how);
  if (error != cudaSuccess) return cuda_error("asking how many clusters run at once", error);
  how.blocks = dim3(static_cast<unsigned>(args.schedule.num_lines * core::blocks_of_tile(params)),
                    static_cast<unsigned>(args.schedule.parts_of_line));
  if (!appends) error = launch_append(params, stream);
  if (error != cudaSuccess) return cuda_error("launching the append", error);
  if (core::query_rows(params) == 0) return {};
  how.early = args.follows_append;
  how.leaves_room = true;
  error = start(function, how, &args, stream);
  if (error != cudaSuccess) return cuda_error("launching the split-KV kernel", error);
  const bool whole = args.schedule.num_splits == 1 || (args.schedule.balanced() && args.schedule.parts_of_line == 1);
  if (whole || args.schedule.all_in_clusters()) return {};
  error = launch_merge(params, *kernel, args, false, stream);
  if (error != cudaSuccess) return cuda_error("launching the merging of splits", error);
  return {};
}

}  // namespace flash3::launch
