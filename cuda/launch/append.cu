#include <algorithm>
#include <cstdint>

#include "core/call_facts.h"
#include "device/append_kernel.cuh"
#include "launch/append.h"
#include "launch/cache.h"
#include "launch/start.h"

namespace flash3::launch {
namespace {

constexpr int32_t kVector = 8;  // columns
// Up to so many blocks, each thread has one row. So many find room beside the blocks of the split-KV kernel, which then
// start all at once, and not where and when blocks of this one end.
constexpr int64_t kMostSmallBlocks = 264;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Without `blocks`, which share_out() decides on. `to` is written.
device::RowMove make_move(const device::TensorRows &from, const device::TensorRows &to, const core::SeqSide &side,
                          int32_t batch, int32_t heads, int32_t columns, const core::Rotary &rotary) {
  device::RowMove move = {};
  move.from = from;
  move.to = to;
  move.side = side;
  move.rows = static_cast<int32_t>(side.cu_seqlens != nullptr ? side.rows : batch * side.rows);
  move.rows_of_entry = core::Divisor::make(side.rows);
  move.rotated_units = rotary.columns / (rotary.half > 0 ? 2 * kVector : kVector);
  const int32_t units_of_head = move.rotated_units + (columns - rotary.columns) / kVector;
  move.units = int64_t{heads} * units_of_head;
  move.units_of_head = core::Divisor::make(units_of_head);
  const int64_t most_threads = std::min<int64_t>(move.units, device::kAppendThreads);
  move.threads_per_row_log2 = device::kLeastThreadsPerRowLog2;
  while ((1 << move.threads_per_row_log2) < most_threads) ++move.threads_per_row_log2;
  move.blocks_of_row = core::Divisor::make(ceil_div(move.units, 1 << move.threads_per_row_log2));
  return move;
}

int64_t blocks_of(const device::RowMove &move, int32_t rows_per_thread) {
  if (move.rows == 0) return 0;
  const int64_t rows = int64_t{device::kAppendThreads >> move.threads_per_row_log2} * rows_per_thread;
  return ceil_div(move.rows, rows) * move.blocks_of_row.divisor;
}

// Returns the blocks of all three.
int64_t share_out(device::AppendArgs *args) {
  device::RowMove *const moves[] = {&args->new_keys, &args->new_values, &args->queries};
  const auto blocks = [&](int32_t rows_per_thread) {
    int64_t sum = 0;
    for (const device::RowMove *move : moves) sum += blocks_of(*move, rows_per_thread);
    return sum;
  };
  args->rows_per_thread = blocks(1) <= kMostSmallBlocks ? 1 : device::kMostRowsPerThread;
  for (device::RowMove *move : moves) {
    move->blocks = static_cast<int32_t>(blocks_of(*move, args->rows_per_thread));
  }
  return blocks(args->rows_per_thread);
}

// Units and blocks are 32-bit on the device. A row with more has 32 GB, and a grid with more moves some terabytes.
bool fits(const device::AppendArgs &args, int64_t blocks) {
  constexpr int64_t kMost = (int64_t{1} << 31) - device::kAppendThreads;
  for (const device::RowMove *move : {&args.new_keys, &args.new_values, &args.queries}) {
    if (move->units > kMost) return false;
  }
  return blocks <= kMost;
}

void set_new_rows(const flash3_params &p, device::AppendArgs *args) {
  const core::SeqSide &side = args->cache.appended;
  const device::TensorRows k{p.k, p.k_batch_stride, p.k_row_stride, p.k_head_stride};
  const device::TensorRows v{p.v, p.v_batch_stride, p.v_row_stride, p.v_head_stride};
  args->new_keys = make_move(new_keys(p), k, side, p.batch, p.nheads_k, p.head_dim, args->rotary);
  if (p.v_new == nullptr) return;  // the values are columns of the keys
  args->new_values = make_move(new_values(p), v, side, p.batch, p.nheads_k, p.head_dim_v, {});
}

void set_queries(const flash3_params &p, device::AppendArgs *args) {
  args->queries = make_move(given_queries(p), queries(p), core::q_side(p), p.batch, p.nheads, p.head_dim, args->rotary);
}

template <class Element>
const void *kernel_of(bool by_halves) {
  return by_halves ? reinterpret_cast<const void *>(&device::append_kernel<Element, true>)
                   : reinterpret_cast<const void *>(&device::append_kernel<Element, false>);
}

}  // namespace

device::TensorRows new_keys(const flash3_params &p) {
  return {p.k_new, p.cu_seqlens_k_new != nullptr ? 0 : p.k_new_batch_stride, p.k_new_row_stride, p.k_new_head_stride};
}

device::TensorRows new_values(const flash3_params &p) {
  return {p.v_new, p.cu_seqlens_k_new != nullptr ? 0 : p.v_new_batch_stride, p.v_new_row_stride, p.v_new_head_stride};
}

cudaError_t launch_append(const flash3_params &p, cudaStream_t stream) {
  if (!has_append(p)) return cudaSuccess;
  device::AppendArgs args = {};
  args.cache = core::KvCache::of(p);
  args.rotary = core::Rotary::of(p);
  args.batch = p.batch;
  if (p.k_new != nullptr) set_new_rows(p, &args);
  if (args.rotary.columns > 0) set_queries(p, &args);
  const int64_t blocks = share_out(&args);
  if (blocks == 0) return cudaSuccess;
  if (!fits(args, blocks)) return cudaErrorInvalidValue;
  const bool by_halves = args.rotary.half > 0;
  const void *kernel =
      p.dtype == FLASH3_BFLOAT16 ? kernel_of<cutlass::bfloat16_t>(by_halves) : kernel_of<cutlass::half_t>(by_halves);
  // The kernel behind needs nearly all shared memory.
  Start how{dim3(static_cast<unsigned>(blocks)), device::kAppendThreads};
  how.leaves_room = true;
  return start(kernel, how, &args, stream);
}

}  // namespace flash3::launch
