// From a warpgroup's accumulated output to memory: normalise, write LSE, stage in shared memory, store through TMA.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/ptx.cuh"
#include "device/repair.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/swizzle.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct Epilogue {
  using Element = typename Traits::Element;
  static constexpr int kOutputs = Traits::kHeadDimV / 2;

  const FwdArgs &args;
  const int warpgroup;

  __device__ __forceinline__ Epilogue(const FwdArgs &a, int wg) : args(a), warpgroup(wg) {}

  // What does not need the output yet; the LSE is written here.
  __device__ __forceinline__ RowResults finish_rows(const WorkTile &tile, const OnlineSoftmax &softmax) const {
    const float sink = args.sinks != nullptr ? args.sinks[tile.head] : -INFINITY;
    const RowResults results = softmax.finish({{sink, sink}});
    store_lse(tile, results.lse);
    return results;
  }

  // Stages the warpgroup's output at `to` in shared memory and stores it through TMA, which still reads there when this
  // returns. All its warps must know that nobody reads there any more.
  __device__ __forceinline__ void store(const WorkTile &tile, const RowResults &results, float (&o)[kOutputs],
                                        Element *to) const {
    const Repair<Traits> repair{args, tile, Traits::warp_row(tile, warpgroup)};
    const bool suspect = repair.suspect(o);
    normalise(results, o);
    if (suspect) repair.run(o, results.lse);
    stage(o, to);
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(NamedBarriers<Traits>::epilogue(warpgroup), 128);
    store_boxes(tile, to);
  }

  // A tile whose rows see no key: zeros and LSE, without touching shared memory that the producer may be filling.
  __device__ __forceinline__ void store_empty(const WorkTile &tile) const {
    const int64_t row0 = Traits::warpgroup_row(tile, warpgroup);
    const int rows = static_cast<int>(min(int64_t{64}, tile.seqlen_q - row0));
    const int chunks = args.head_dim_v / 8;
    for (int i = threadIdx.x % 128; i < rows * chunks; i += 128) {
      const Element *at = row_of<Element>(args.out, tile.batch, tile.q_start + row0 + i / chunks, tile.head);
      *reinterpret_cast<uint4 *>(const_cast<Element *>(at) + i % chunks * 8) = make_uint4(0, 0, 0, 0);
    }
    if (args.lse == nullptr) return;
    const float lse = args.sinks != nullptr ? args.sinks[tile.head] : -INFINITY;
    for (int i = threadIdx.x % 128; i < rows; i += 128) lse_row(tile)[row0 + i] = lse;
  }

 private:
  __device__ __forceinline__ float *lse_row(const WorkTile &tile) const {
    const int64_t b = Traits::packed(args.q_side) ? tile.q_start : tile.batch * args.lse_batch_stride;
    return args.lse + b + tile.head * args.lse_head_stride;
  }

  static __device__ __forceinline__ void normalise(const RowResults &results, float (&o)[kOutputs]) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] *= results.factor[i / 2 % 2];
    if (!__any_sync(0xffffffffu, results.empty[0] || results.empty[1])) return;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = results.empty[i / 2 % 2] ? 0.f : o[i];
  }

  __device__ __forceinline__ void store_lse(const WorkTile &tile, const float (&lse)[2]) const {
    const int lane = threadIdx.x % 32;
    if (args.lse == nullptr || lane % 4 != 0 || Traits::first_column() != 0) return;
    const int64_t row0 = Traits::warp_row(tile, warpgroup) + lane / 4;
    float *const at = lse_row(tile) + row0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row0 + 8 * r < tile.seqlen_q) at[8 * r] = lse[r];
    }
  }

  // The warp's 16 rows in the layout of the tensor map. Each stmatrix writes 16 rows x 16 columns: matrices (row half,
  // column half) = (0,0) (1,0) (0,1) (1,1), in the order of the accumulator's registers. Lane l gives the address of
  // row l % 16 and column half l / 16.
  __device__ __forceinline__ void stage(const float (&o)[kOutputs], Element *to) const {
    const int lane = threadIdx.x % 32;
    char *const rows = reinterpret_cast<char *>(to + threadIdx.x % 128 / 32 * 16 * Traits::kBoxCols);
#pragma unroll
    for (int j = 0; j < Traits::kHeadDimV / 16; ++j) {
      const uint32_t at =
          swizzled_offset<Traits::kSwizzleBytes, Traits::kStagedRows>(lane % 16, 16 * j + lane / 16 * 8);
      ptx::stmatrix_x4(rows + at, pack2<Element>(o[8 * j], o[8 * j + 1]), pack2<Element>(o[8 * j + 2], o[8 * j + 3]),
                       pack2<Element>(o[8 * j + 4], o[8 * j + 5]), pack2<Element>(o[8 * j + 6], o[8 * j + 7]));
    }
  }

  // The warpgroup's 64 rows, a column block to a warp: issuing a store takes some hundred clocks.
  __device__ __forceinline__ void store_boxes(const WorkTile &tile, const Element *to) const {
    const int64_t row0 = Traits::warpgroup_row(tile, warpgroup);
    if (row0 >= tile.seqlen_q) return;
    const int warp = ptx::uniform(threadIdx.x % 128 / 32);
#pragma unroll
    for (int pass = 0; pass < Traits::kColBlocksV; pass += 4) {
      const int c = pass + warp;
      const int32_t col = Traits::first_column() + c * Traits::kBoxCols;
      if (c >= Traits::kColBlocksV || col >= args.head_dim_v || !ptx::elect_one()) continue;
      ptx::TmaCoord at;
      at.col = col;
      at.row = static_cast<int32_t>(args.q_side.rows - tile.seqlen_q + row0);
      at.end = tile.q_end;
      at.head = tile.head;
      at.batch = Traits::packed(args.q_side) ? 0 : tile.batch;
      ptx::tma_store(&args.out_map, to + c * Traits::kStagedRows * Traits::kBoxCols, at);
      ptx::tma_store_commit_group();
    }
  }
};

}  // namespace flash3::device
