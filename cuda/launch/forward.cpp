// params -> kernel arguments -> launches.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "core/call_facts.h"
#include "core/constants.h"
#include "core/split_config.h"
#include "core/tile_scheduler.h"
#include "core/workspace.h"
#include "device/fwd_args.h"
#include "launch/append.h"
#include "launch/cache.h"
#include "launch/clusters.h"
#include "launch/device_info.h"
#include "launch/forward_step.h"
#include "launch/kernel_table.h"
#include "launch/prepare.h"
#include "launch/shared_memory.h"
#include "launch/split.h"
#include "launch/start.h"
#include "launch/tensor_map.h"

namespace flash3::launch {
namespace {

constexpr int64_t kMostTiles = (int64_t{1} << 31) - (int64_t{1} << 16);  // tile numbers and tickets are 32-bit

// Heads as tiles count them, and queries of a tile.
int32_t tile_heads(const flash3_params &p, const core::Pieces &pieces) { return p.nheads / pieces.pack; }
int32_t tile_queries(const FwdKernel &kernel, const core::Pieces &pieces) { return kernel.block_m / pieces.pack; }

// Of all sequences together.
int32_t most_m_blocks(const flash3_params &p, const core::Pieces &pieces) {
  return static_cast<int32_t>(kMostTiles / tile_heads(p, pieces) / pieces.count);
}

core::Status encode_maps(const flash3_params &p, const FwdKernel &kernel, const core::Pieces &pieces,
                         device::FwdArgs *args) {
  const bool bf16 = p.dtype == FLASH3_BFLOAT16;
  const int64_t batch_q = p.cu_seqlens_q != nullptr ? 1 : p.batch;
  const int64_t batch_k = p.cu_seqlens_k != nullptr ? 1 : p.batch;
  const int64_t rows_q = args->q_side.rows;
  const int64_t rows_k = args->k_side.rows;
  const TensorView q{"q", args->q, p.head_dim, rows_q, p.nheads, batch_q};
  const TensorView k{"k", args->k, p.head_dim, rows_k, p.nheads_k, batch_k};
  const TensorView v{"v", args->v, p.head_dim_v, rows_k, p.nheads_k, batch_k};
  const TensorView out{"out", args->out, p.head_dim_v, rows_q, p.nheads, batch_q};
  BoxShape q_box{kernel.box_cols, kernel.block_m, kernel.swizzle_bytes};
  BoxShape out_box{kernel.box_cols, 64, kernel.swizzle_bytes};  // rows of a warpgroup
  const BoxShape q_zero_box = q_box;
  if (!pieces.whole_tiles_of_heads()) {
    for (BoxShape *const box : {&q_box, &out_box}) {
      box->rows /= pieces.pack;
      box->heads = pieces.pack;
    }
  }
  const BoxShape kv_box{kernel.box_cols, kernel.block_n, kernel.swizzle_bytes};
  const bool zeros =
      p.head_dim <= kernel.head_dim - kernel.box_cols || p.head_dim_v <= kernel.head_dim_v - kernel.box_cols;
  core::Status status = encode_tensor_map(q, bf16, q_box, &args->q_map);
  if (status.ok()) status = encode_tensor_map(out, bf16, out_box, &args->out_map);
  if (status.ok() && zeros) status = encode_zero_map(p.q, bf16, q_zero_box, &args->q_zero_map);
  if (!status.ok()) return status;
  if (core::has_kv_cache(p) || !pieces.whole_tiles_of_heads()) return set_cache(p, kernel, args);
  if (rows_k == 0) {
    // Nothing will be loaded, but the kernel prefetches the maps.
    args->k_map = args->v_map = args->q_map;
    return status;
  }
  status = encode_tensor_map(k, bf16, kv_box, &args->k_map);
  if (status.ok()) status = encode_tensor_map(v, bf16, kv_box, &args->v_map);
  if (status.ok() && zeros) status = encode_zero_map(p.q, bf16, kv_box, &args->kv_zero_map);
  return status;
}

// The scheduler's state in the workspace: a tile counter and, for many packed sequences, the place of each in the order
// of tiles. A call of few tiles (see few_tiles) needs no counter, nor do pairs and the kernel for short sequences.
struct SchedulerState {
  int32_t *tile_counter;
  int32_t *first_m_block;  // NULL: not needed

  bool needs_preparing() const { return tile_counter != nullptr; }
};

SchedulerState scheduler_state(const flash3_params &p, const FwdKernel &kernel, bool draws_tickets) {
  const core::WorkspaceLayout layout = core::workspace_layout(p);
  char *workspace = static_cast<char *>(p.workspace);
  const bool table = !kernel.is_resident && p.cu_seqlens_q != nullptr && p.batch > kernel.most_added_up;
  if (kernel.is_short || (!draws_tickets && !table)) return {nullptr, nullptr};
  return {reinterpret_cast<int32_t *>(workspace + layout.tile_counter),
          table ? reinterpret_cast<int32_t *>(workspace + layout.first_m_block) : nullptr};
}

// Tiles of a sequence and head: of every one of a dense call. In a packed one the lengths are only known on the device,
// and the kernel for short sequences shares out the tiles of one of mean length.
int32_t num_m_blocks(const flash3_params &p, const FwdKernel &kernel, const core::Pieces &pieces) {
  return core::ceil_div(static_cast<int32_t>(core::mean_queries(p)), tile_queries(kernel, pieces));
}

// Those that the schedule counts: pairs of them, where they are computed so.
int32_t scheduled_m_blocks(const flash3_params &p, const FwdKernel &kernel, const core::Pieces &pieces) {
  const int32_t m_blocks = num_m_blocks(p, kernel, pieces);
  return kernel.paired ? core::pairs_of(m_blocks) : m_blocks;
}

int64_t l2_budget(const FwdKernel &kernel, const core::Window &window) {
  if (kernel.cluster_blocks > 1) return core::kL2BudgetWide;
  if (kernel.paired) return core::kL2BudgetPaired;
  if (!window.limited()) return core::kL2Budget;
  if (kernel.head_dim != kernel.head_dim_v || kernel.head_dim == 256) return core::kL2BudgetWide;
  return kernel.head_dim == 192 ? core::kL2Budget192 : core::kL2BudgetCausal;
}

core::Status make_args(const flash3_params &p, const FwdKernel &kernel, const SchedulerState &state,
                       const core::Pieces &pieces, int64_t blocks, device::FwdArgs *args) {
  args->q_side = core::q_side(p);
  args->k_side = core::KvCache::of(p).filled;
  args->window = core::Window::make(p.window_left, p.window_right);
  const bool packed_q = p.cu_seqlens_q != nullptr;
  const bool packed_k = p.cu_seqlens_k != nullptr;
  args->q = queries(p);
  args->k = {p.k, packed_k ? 0 : p.k_batch_stride, p.k_row_stride, p.k_head_stride};
  args->v = {p.v, packed_k ? 0 : p.v_batch_stride, p.v_row_stride, p.v_head_stride};
  args->out = {p.out, packed_q ? 0 : p.out_batch_stride, p.out_row_stride, p.out_head_stride};
  args->lse = p.lse;
  args->lse_batch_stride = p.lse_batch_stride;
  args->lse_head_stride = p.lse_head_stride;
  args->batch = p.batch;
  args->nheads = tile_heads(p, pieces);
  args->group = args->nheads / p.nheads_k;
  args->head_dim = p.head_dim;
  args->head_dim_v = p.head_dim_v;
  args->num_m_blocks = num_m_blocks(p, kernel, pieces);
  const int32_t scheduled = scheduled_m_blocks(p, kernel, pieces);
  args->num_tiles = packed_q && !kernel.is_short ? 0 : scheduled * args->nheads * p.batch;
  args->kv_bytes_per_key = 2 * (int64_t{p.head_dim} + p.head_dim_v);
  args->l2_budget = l2_budget(kernel, args->window);
  // Of packed keys only the mean length is known here; the order of tiles is a matter of speed alone.
  const int64_t keys =
      core::keys_in_use(args->window, packed_k ? p.total_k / p.batch : args->k_side.rows, kernel.block_m);
  const core::Sections sections =
      core::Sections::make(args->nheads * p.batch, args->group, keys * args->kv_bytes_per_key, args->l2_budget);
  args->dense_schedule = core::DenseSchedule::make(scheduled, args->nheads, sections);
  args->group_divisor = core::Divisor::make(args->group);
  args->m_blocks_divisor = core::Divisor::make(args->num_m_blocks);
  args->units = {};
  args->packed_units = {};
  if (kernel.is_resident) {
    args->packed_units = core::PackedUnits::make(p.batch, args->nheads, args->group, blocks);
    // As measured: in step is up to 4 % faster, and up to 3 % slower where tiles of a unit are of two lengths.
    const bool in_step = args->group == 1 || p.seqlen_q % kernel.block_m == 0;
    const int64_t tiles_of_unit = int64_t{args->num_m_blocks} * args->group;
    args->units = core::UnitSchedule::make(args->num_tiles, tiles_of_unit, blocks, in_step);
  }
  args->scale = p.softmax_scale;
  args->scale_log2 = p.softmax_scale * core::kLog2e;
  args->softcap = p.softcap;
  args->zero = 0;
  args->softcap_polynomial = core::SoftcapPolynomial::of_call(p.softmax_scale, p.softcap);
  args->monic_softcap = core::MonicSoftcap::of_call(p.softmax_scale, p.softcap);
  args->alibi_slopes = p.alibi_slopes;
  args->alibi_batch_stride = p.alibi_batch_stride;
  args->sinks = p.sinks;
  args->tile_counter = state.tile_counter;
  args->first_m_block = state.first_m_block;
  args->most_m_blocks = most_m_blocks(p, pieces);
  args->pieces = core::Divisor::make(pieces.count);
  args->pack = core::Divisor::make(pieces.pack);
  args->partials = pieces.count > 1 ? partials_of(p) : device::Partials{};
  return encode_maps(p, kernel, pieces, args);
}

// Upper bound: the lengths of a packed call are only known on the device. Pieces of them count.
int64_t most_tiles(const flash3_params &p, const FwdKernel &kernel, const core::Pieces &pieces) {
  const int64_t columns = int64_t{tile_heads(p, pieces)} * pieces.count;
  if (p.cu_seqlens_q == nullptr || kernel.is_short) return scheduled_m_blocks(p, kernel, pieces) * columns * p.batch;
  return (p.total_q / tile_queries(kernel, pieces) + p.batch) * columns;
}

// In the kernel for few keys a ticket takes about as long as a short sequence of few columns, and gains nothing where
// all are of one length.
bool draws_units(const flash3_params &p, const FwdKernel &kernel) {
  constexpr int64_t kLeastRows = 48;
  const int64_t mean = core::mean_queries(p);
  return kernel.head_dim == 128 && mean >= kLeastRows && p.max_seqlen_q != mean;
}

// So many tiles of a stream are shared out beforehand, if all have as many (of packed calls, by a bound); others are
// drawn by tickets. To have a counter set to zero takes 1 to 2 us, which few tiles are too short for; what tiles cost
// differs under a mask and between sequences. As measured; the kernels for caches draw tickets always.
int64_t few_tiles(const flash3_params &p, const FwdKernel &kernel, const core::Pieces &pieces) {
  constexpr int64_t kAny = int64_t{1} << 40;
  const bool packed = p.cu_seqlens_q != nullptr;
  if (kernel.is_resident) return packed && draws_units(p, kernel) ? 4 : kAny;
  if (core::has_kv_cache(p) || !pieces.whole_tiles_of_heads()) return 1;
  if (packed) return 3;
  if (core::has_device_lengths(p)) return 1;
  return core::Window::make(p.window_left, p.window_right).limited() ? 2 : kAny;
}

// Fills the scheduler's state, the counter with zero.
cudaError_t enqueue_scheduler(const flash3_params &p, const FwdKernel &kernel, const SchedulerState &state,
                              const core::Pieces &pieces, cudaStream_t stream) {
  if (!state.needs_preparing()) return cudaSuccess;
  if (state.first_m_block == nullptr) return launch_dense_prepare(state.tile_counter, stream);
  return launch_varlen_prepare(core::q_side(p), p.batch, tile_queries(kernel, pieces), most_m_blocks(p, pieces),
                               state.first_m_block, state.tile_counter, stream);
}

Start start_of(const FwdKernel &kernel, unsigned blocks) {
  Start how{dim3(blocks), kernel.threads, kernel.shared_bytes};
  if (kernel.paired) how.cluster = {2, 1, 1};
  return how;
}

cudaError_t enqueue_forward(const FwdKernel &kernel, device::FwdArgs *args, unsigned blocks, int32_t device,
                            cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(kernel.function, kernel.shared_bytes, device);
  if (error != cudaSuccess) return error;
  Start how = start_of(kernel, blocks);
  how.early = !kernel.paired && args->tile_counter != nullptr;  // there is a preparing kernel
  return start(kernel.function, how, args, stream);
}

}  // namespace

core::Status forward_step(const flash3_params &params, const DeviceInfo &device, cudaStream_t stream) {
  const core::Route route = built_route(params);
  if (route.split) return split_forward(params, device, stream);
  core::Status status;
  const SplitKernel *merging = nullptr;
  if (route.pieces.count > 1) status = find_split_kernel(params, &merging);
  if (!status.ok()) return status;
  const FwdKernel *kernel = nullptr;
  // Whatever sm_margin is, so that it never changes a bit.
  status = find_kernel(params, route, device.multiprocessors, true, &kernel);
  if (!status.ok()) return status;
  int32_t pairs = 0;
  cudaError_t error = cudaSuccess;
  if (kernel->paired) {
    error = resident_clusters(kernel->function, start_of(*kernel, 2), device.ordinal, &pairs);
    if (error != cudaSuccess) return cuda_error("asking how many clusters run at once", error);
    // Where no two multiprocessors form a cluster, one after the other computes the same bits.
    if (pairs == 0) status = find_kernel(params, route, device.multiprocessors, false, &kernel);
    if (!status.ok()) return status;
  }
  const int64_t tiles = most_tiles(params, *kernel, route.pieces);
  const int64_t most = kMostTiles / kernel->cluster_blocks;
  if (tiles > most) {
    const int64_t at_once = kernel->paired ? 2 : 1;
    return core::error(FLASH3_UNSUPPORTED, "batch ", params.batch, " with nheads ", params.nheads, " makes ",
                       at_once * tiles, " tiles; at most ", at_once * most, " fit one call");
  }
  const int64_t most_blocks = int64_t{std::max(device.multiprocessors - params.sm_margin, 1)} * kernel->blocks_per_sm;
  const bool clusters = kernel->cluster_blocks > 1;
  int64_t blocks = std::min(tiles, most_blocks);
  if (clusters) blocks = tiles * kernel->cluster_blocks;  // a cluster has one tile, and the hardware hands them out
  if (kernel->paired) {
    // Tiles are shared out beforehand: a pair of blocks that had to wait for others would be late with all of its own.
    const int64_t most_pairs = std::min(int64_t{pairs}, most_blocks / 2);
    blocks = 2 * std::min(tiles, std::max(most_pairs, int64_t{1}));
  }
  const bool draws_tickets =
      !clusters && !kernel->paired && tiles > most_blocks * kernel->streams * few_tiles(params, *kernel, route.pieces);
  const SchedulerState state = scheduler_state(params, *kernel, draws_tickets);
  device::FwdArgs args;
  status = make_args(params, *kernel, state, route.pieces, blocks, &args);
  if (!status.ok()) return status;
  error = launch_append(params, stream);
  if (error != cudaSuccess) return cuda_error("launching the append", error);
  error = enqueue_scheduler(params, *kernel, state, route.pieces, stream);
  if (error != cudaSuccess) return cuda_error("preparing the tile scheduler", error);
  error = enqueue_forward(*kernel, &args, static_cast<unsigned>(blocks), device.ordinal, stream);
  if (error != cudaSuccess) return cuda_error("launching the forward kernel", error);
  if (merging == nullptr) return {};
  return merge_pieces(params, *merging, route.pieces.count, device, stream);
}

}  // namespace flash3::launch
