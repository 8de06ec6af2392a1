// Adding up the partial results of a row and head: by one warp where there are few pieces, or many rows, otherwise by
// several of a block. Reads go past L1, which does not see what others have written since.
#pragma once

#include <cstdint>

#include "core/constants.h"
#include "device/merge_args.h"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"

namespace flash3::device {

inline constexpr int kMergeThreads = 256;
inline constexpr int kMergeWarps = kMergeThreads / 32;

template <int kFloats>
struct VectorOf;
template <>
struct VectorOf<2> {
  using Type = float2;
};
template <>
struct VectorOf<4> {
  using Type = float4;
};

template <int kCols>
struct MergeShared {
  float top[kMergeWarps], total[kMergeWarps];
  alignas(16) float o[kMergeWarps][32][kCols];
};

// kCols: columns of a lane, 32 lanes to a row.
template <class Element, int kCols>
struct Merge {
  static constexpr int kAtOnce = 32 / kCols < 8 ? 32 / kCols : 8;  // pieces that are on their way at the same time
  static constexpr int kVector = kCols < 4 ? kCols : 4;            // columns of a lane that follow each other
  using Vector = typename VectorOf<kVector>::Type;

  const MergeArgs &args;
  MergeShared<kCols> &shared;
  const bool real;  // otherwise a rehearsal
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;

  // The result of pieces i = first, first + step, .., relative to the largest of their LSEs.
  struct Sum {
    float top = -INFINITY, total = 0.f;
    float o[kCols];
  };

  struct Row {
    int32_t batch, head, count;
    int64_t row;  // of out
    // Places of the partial results: of the first piece, of the second one, and from there to the next ones.
    int64_t first, second, stride;
  };

  __device__ __forceinline__ Row row(const core::SplitEntry &e, int32_t index) const {
    const core::SplitSchedule &s = args.schedule;
    const Partials &partials = args.partials;
    const int64_t packed = int64_t{e.m_block} * s.block_m + index;
    const int32_t query = s.query(packed);
    Row r;
    r.batch = e.batch;
    r.count = e.count;
    r.row = int64_t{e.q_start} + query;
    r.head = e.kv_head * s.group.divisor + static_cast<int32_t>(packed - int64_t{query} * s.group.divisor);
    const int64_t q_row = args.packed_q ? r.row : int64_t{e.batch} * args.seqlen_q + query;
    r.first = partials.row(s, e.first_piece, index, q_row, r.head);
    r.second = partials.row(s, e.next_piece, index, q_row, r.head);
    r.stride = partials.stride(s, e.step);
    return r;
  }

  // Of a fixed number of splits of packed queries: of a row of q and out, in sequence b.
  __device__ __forceinline__ Row packed_row(int32_t b, int64_t row, int32_t head) const {
    const core::SplitSchedule &s = args.schedule;
    const auto place = [&](int32_t split) { return args.partials.row(s, split, 0, row, head); };
    return {b, head, s.num_splits, row, place(0), place(1), args.partials.stride(s, 1)};
  }

  __device__ __forceinline__ int32_t column(int vector) const { return kVector * (lane + 32 * vector); }

  __device__ __forceinline__ Sum add_up(const Row &r, int32_t first, int32_t step) const {
    Sum sum;
#pragma unroll
    for (int c = 0; c < kCols; ++c) sum.o[c] = 0.f;
#pragma unroll 1
    for (int32_t base = first; base < r.count; base += kAtOnce * step) {
      float lse[kAtOnce];
      Vector values[kAtOnce][kCols / kVector];
      int64_t at = base == 0 ? r.first : r.second + (base - 1) * r.stride;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const bool counts = base + k * step < r.count;
        lse[k] = -INFINITY;
        if (counts) lse[k] = __ldcg(args.partials.lse + at);
#pragma unroll
        for (int v = 0; v < kCols / kVector; ++v) {
          values[k][v] = {};
          if (counts && column(v) < args.head_dim_v) {
            values[k][v] =
                __ldcg(reinterpret_cast<const Vector *>(args.partials.out + at * args.head_dim_v + column(v)));
          }
        }
        at = r.second + (base + (k + 1) * step - 1) * r.stride;
      }
      float top = sum.top;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) top = fmaxf(top, lse[k]);
      const float keep = sum.top == -INFINITY ? 0.f : ptx::ex2((sum.top - top) * core::kLog2e);
      sum.top = top;
      sum.total *= keep;
#pragma unroll
      for (int c = 0; c < kCols; ++c) sum.o[c] *= keep;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        // NaN stays NaN, and a piece that has seen no key counts nothing, whatever lies in its place.
        const bool counts = lse[k] != -INFINITY;
        const float weight = counts ? ptx::ex2((lse[k] - top) * core::kLog2e) : 0.f;
        sum.total += weight;
#pragma unroll
        for (int c = 0; c < kCols; ++c) {
          const float x = reinterpret_cast<const float *>(&values[k][c / kVector])[c % kVector];
          sum.o[c] = counts ? fmaf(weight, x, sum.o[c]) : sum.o[c];
        }
      }
    }
    return sum;
  }

  // Adds up the pieces of a row and stores the result: a warp alone, or the warps that share the row.
  __device__ __forceinline__ void merge(const Row &r) const {
    const int32_t warps = args.warps_of_row;
    const int32_t first = warp & -warps;  // of those that share the row
    Sum sum = add_up(r, warp - first, warps);
    if (warps > 1) {
      shared.top[warp] = sum.top;
      shared.total[warp] = sum.total;
#pragma unroll
      for (int c = 0; c < kCols; ++c) shared.o[warp][lane][c] = sum.o[c];
      sync_row(first);
      if (warp == first) sum = sum_of_row(first);
    }
    if (warp == first) store(r, sum);
    if (warps > 1) sync_row(first);
  }

 private:
  __device__ __forceinline__ void sync_row(int32_t first) const {
    ptx::bar_sync(1 + static_cast<uint32_t>(first), 32 * args.warps_of_row);
  }

  // Without branches, so that all reads are on their way at once: fewer warps than there are count once all the same.
  __device__ __forceinline__ Sum sum_of_row(int32_t first) const {
    const int32_t mask = args.warps_of_row - 1;
    Sum sum;
#pragma unroll
    for (int c = 0; c < kCols; ++c) sum.o[c] = 0.f;
#pragma unroll
    for (int i = 0; i < kMergeWarps; ++i) sum.top = fmaxf(sum.top, shared.top[first + (i & mask)]);
#pragma unroll
    for (int i = 0; i < kMergeWarps; ++i) {
      const int w = first + (i & mask);
      const float total = shared.total[w];
      const bool counts = i <= mask && (shared.top[w] != -INFINITY || total != 0.f);
      const float weight = counts ? ptx::ex2((shared.top[w] - sum.top) * core::kLog2e) : 0.f;
      sum.total = counts ? fmaf(weight, total, sum.total) : sum.total;
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        sum.o[c] = counts ? fmaf(weight, shared.o[w][lane][c], sum.o[c]) : sum.o[c];
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
    const float lse = empty ? sink : top + ptx::lg2(total) * core::kLn2;
    ptx::store_if(real && args.lse != nullptr && lane == 0,
                  args.lse + r.batch * args.lse_batch_stride + r.head * args.lse_head_stride + r.row,
                  __float_as_uint(lse));
    auto *const to = const_cast<Element *>(row_of<Element>(args.out, r.batch, r.row, r.head));
#pragma unroll
    for (int c = 0; c < kCols; c += 2) {
      const int32_t col = column(c / kVector) + c % kVector;
      const uint32_t two = empty ? 0u : pack2<Element>(sum.o[c] * factor, sum.o[c + 1] * factor);
      ptx::store_if(real && col < args.head_dim_v, to + col, two);
    }
  }
};

}  // namespace flash3::device
