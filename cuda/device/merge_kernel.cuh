// Merges the partial results of the split-KV kernel: a result of a row and head is a weighted sum of those of its
// pieces. One warp computes it where there are few pieces, all warps of a block where there are many.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "device/merge_args.h"
#include "device/ptx.cuh"
#include "device/softmax.cuh"
#include "device/split_args.h"

namespace flash3::device {

inline constexpr int kMergeThreads = 256;
inline constexpr int kMergeWarps = kMergeThreads / 32;

// kCols: columns of a lane, 32 lanes to a row.
template <class Element, int kCols>
struct Merge {
  static constexpr int kManyPieces = 8;

  const MergeArgs &args;
  float *shared;  // (kMergeWarps, 32 * kCols + 2)
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;

  // The result of pieces i = first, first + step, .., relative to the largest of their LSEs.
  struct Sum {
    float top = -INFINITY, total = 0.f;
    float o[kCols];
  };

  struct Row {
    core::SplitEntry entry;
    int32_t index;  // in the tile
    int64_t row;    // of out
    int32_t head;
    int64_t query;  // as in Partials

    __device__ __forceinline__ int64_t partial(const MergeArgs &a, int32_t i) const {
      return a.partials.row(a.schedule, entry.piece(i), index, query, head);
    }
  };

  __device__ __forceinline__ Row row(const core::SplitEntry &e, int32_t index) const {
    const core::SplitSchedule &s = args.schedule;
    const int64_t packed = int64_t{e.m_block} * s.block_m + index;
    const int32_t query = s.query(packed);
    Row r;
    r.entry = e;
    r.index = index;
    r.row = int64_t{e.q_start} + query;
    r.head = e.kv_head * s.group.divisor + static_cast<int32_t>(packed - int64_t{query} * s.group.divisor);
    r.query = args.packed_q ? r.row : int64_t{e.batch} * args.seqlen_q + query;
    return r;
  }

  __device__ __forceinline__ Sum add_up(const Row &r, int32_t first, int32_t step) const {
    Sum sum;
#pragma unroll
    for (int c = 0; c < kCols; ++c) sum.o[c] = 0.f;
    for (int32_t base = first; base < r.entry.count; base += 32 * step) {
      // A lane's share of the LSEs; then the pieces one after the other.
      const int32_t own = base + lane * step;
      const float lse = own < r.entry.count ? args.partials.lse[r.partial(args, own)] : -INFINITY;
      float top = lse;
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
      const float now = fmaxf(top, sum.top);
      if (now == -INFINITY && !__any_sync(0xffffffffu, lse != lse)) continue;
      const float keep = sum.top == -INFINITY ? 0.f : ptx::ex2((sum.top - now) * core::kLog2e);
      // NaN stays NaN, and a piece that has seen no key counts nothing, whatever lies in its place.
      const float weight = lse == -INFINITY ? 0.f : ptx::ex2((lse - now) * core::kLog2e);
      sum.top = now;
      sum.total *= keep;
#pragma unroll
      for (int c = 0; c < kCols; ++c) sum.o[c] *= keep;
      const int32_t count = min(32, (r.entry.count - base + step - 1) / step);
#pragma unroll 4
      for (int32_t i = 0; i < count; ++i) {
        const float w = __shfl_sync(0xffffffffu, weight, i);
        const bool counts = w != 0.f;
        const float *from = args.partials.out + r.partial(args, base + i * step) * args.head_dim_v;
        sum.total += w;
#pragma unroll
        for (int c = 0; c < kCols; c += 2) {
          const int col = 2 * lane + 32 * c;
          if (!counts || col >= args.head_dim_v) continue;
          const float2 two = *reinterpret_cast<const float2 *>(from + col);
          sum.o[c] = fmaf(w, two.x, sum.o[c]);
          sum.o[c + 1] = fmaf(w, two.y, sum.o[c + 1]);
        }
      }
    }
    return sum;
  }

  __device__ __forceinline__ void store(const Row &r, const Sum &sum) const {
    const float sink = args.sinks != nullptr ? args.sinks[r.head] : -INFINITY;
    const float top = fmaxf(sum.top, sink);
    const bool empty = sum.top == -INFINITY && sum.total == 0.f;
    const float keep = empty ? 0.f : ptx::ex2((sum.top - top) * core::kLog2e);
    const float of_sink = sink == -INFINITY ? 0.f : sink == top ? 1.f : ptx::ex2((sink - top) * core::kLog2e);
    const float total = sum.total * keep + of_sink;
    const float factor = empty ? 0.f : keep / total;
    if (args.lse != nullptr && lane == 0) {
      args.lse[r.entry.batch * args.lse_batch_stride + r.head * args.lse_head_stride + r.row] =
          empty ? sink : top + ptx::lg2(total) * core::kLn2;
    }
    auto *const to = const_cast<Element *>(row_of<Element>(args.out, r.entry.batch, r.row, r.head));
#pragma unroll
    for (int c = 0; c < kCols; c += 2) {
      const int col = 2 * lane + 32 * c;
      if (col >= args.head_dim_v) continue;
      *reinterpret_cast<uint32_t *>(to + col) = empty ? 0u : pack2<Element>(sum.o[c] * factor, sum.o[c + 1] * factor);
    }
  }

  // The rows of a tile, of which those in many pieces are shared out to several blocks.
  __device__ __forceinline__ void merge(const core::SplitEntry &entry, int32_t block, int32_t num_blocks) const {
    if (entry.count > kManyPieces) {
#pragma unroll 1
      for (int32_t r = block; r < entry.rows; r += num_blocks) merge_by_block(row(entry, r));
    } else {
#pragma unroll 1
      for (int32_t r = block * kMergeWarps + warp; r < entry.rows; r += num_blocks * kMergeWarps) {
        const Row one = row(entry, r);
        store(one, add_up(one, 0, 1));
      }
    }
  }

 private:
  // All warps of the block: each adds up some of the pieces, the first one their sums.
  __device__ __forceinline__ void merge_by_block(const Row &r) const {
    constexpr int kStride = 32 * kCols + 2;
    const Sum own = add_up(r, warp, kMergeWarps);
    float *const mine = shared + warp * kStride;
    if (lane == 0) {
      mine[0] = own.top;
      mine[1] = own.total;
    }
#pragma unroll
    for (int c = 0; c < kCols; ++c) mine[2 + 32 * c + lane] = own.o[c];
    __syncthreads();
    if (warp == 0) {
      Sum sum;
      sum.total = 0.f;
      for (int w = 0; w < kMergeWarps; ++w) sum.top = fmaxf(sum.top, shared[w * kStride]);
#pragma unroll
      for (int c = 0; c < kCols; ++c) sum.o[c] = 0.f;
      for (int w = 0; w < kMergeWarps; ++w) {
        const float *const part = shared + w * kStride;
        if (part[0] == -INFINITY && part[1] == 0.f) continue;
        const float weight = ptx::ex2((part[0] - sum.top) * core::kLog2e);
        sum.total = fmaf(weight, part[1], sum.total);
#pragma unroll
        for (int c = 0; c < kCols; ++c) sum.o[c] = fmaf(weight, part[2 + 32 * c + lane], sum.o[c]);
      }
      store(r, sum);
    }
    __syncthreads();
  }
};

// Block (x, y, z) of a balanced schedule: entry first_entry + x. Of a fixed number of splits: pair x of sequence and KV
// head, and every gridDim.x-th behind it, and of those tile y, and every gridDim.y-th. Of a tile in many pieces: row z,
// and every gridDim.z-th; of one in few pieces kMergeWarps rows instead of one.
template <class Element, int kCols>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const __grid_constant__ MergeArgs args) {
  using Merger = Merge<Element, kCols>;
  __shared__ float sums[kMergeWarps * (32 * kCols + 2)];
  ptx::wait_for_previous_kernel();
  const Merger merger{args, sums};
  const core::SplitSchedule &s = args.schedule;
  if (s.balanced()) {
    merger.merge(args.partials.entries[args.first_entry + blockIdx.x], blockIdx.z, gridDim.z);
    return;
  }
  const int64_t pairs = int64_t{s.batch} * s.nheads_k;
#pragma unroll 1
  for (int64_t i = blockIdx.x; i < pairs; i += gridDim.x) {
    const auto b = static_cast<int32_t>(i / s.nheads_k);
    const auto kv_head = static_cast<int32_t>(i - int64_t{b} * s.nheads_k);
    const int32_t m_blocks = s.num_m_blocks(s.lengths(b));
#pragma unroll 1
    for (int32_t m = blockIdx.y; m < m_blocks; m += gridDim.y) {
      merger.merge(s.entry_of_tile(b, kv_head, m), blockIdx.z, gridDim.z);
    }
  }
}

}  // namespace flash3::device
