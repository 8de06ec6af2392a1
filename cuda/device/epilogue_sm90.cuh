// From a warpgroup's accumulated output to memory: normalise, write LSE, stage in shared memory, store through TMA.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/ptx.cuh"
#include "device/repair.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

template <class Traits>
struct Epilogue {
  using Element = typename Traits::Element;
  using SharedStorage = typename Traits::SharedStorage;
  static constexpr int kOutputs = Traits::kHeadDim / 2;

  const FwdArgs &args;
  SharedStorage &smem;
  const int warpgroup;

  __device__ __forceinline__ Epilogue(const FwdArgs &a, SharedStorage &s, int wg) : args(a), smem(s), warpgroup(wg) {}

  __device__ __forceinline__ void store(const WorkTile &tile, const OnlineSoftmax &softmax,
                                        float (&o)[kOutputs]) const {
    const int64_t first_row = Traits::warp_row(tile, warpgroup);
    float lse[2];
    normalise(tile, softmax, first_row, o, lse);
    Repair<Traits>{args, tile, first_row}.run(o, lse);
    const bool leader = threadIdx.x % 128 == 0;
    if constexpr (!Traits::kOutAliasesQ) {
      if (leader) ptx::tma_store_wait_read();  // the tile before has left the staging buffer
    }
    // Or, where the output takes Q's place: the products of all four warps with this warpgroup's rows are complete.
    sync();
    stage(o);
    ptx::fence_proxy_async_shared();
    sync();
    if (leader) {
      store_staged(tile);
      if constexpr (Traits::kOutAliasesQ) {
        ptx::tma_store_wait_read();
        ptx::mbarrier_arrive(&smem.q_empty);
      }
    }
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
  __device__ __forceinline__ void sync() const { ptx::bar_sync(NamedBarriers<Traits>::epilogue(warpgroup), 128); }

  __device__ __forceinline__ float *lse_row(const WorkTile &tile) const {
    const int64_t b = args.q_side.cu_seqlens != nullptr ? tile.q_start : tile.batch * args.lse_batch_stride;
    return args.lse + b + tile.head * args.lse_head_stride;
  }

  __device__ __forceinline__ void normalise(const WorkTile &tile, const OnlineSoftmax &softmax, int64_t first_row,
                                            float (&o)[kOutputs], float (&lse)[2]) const {
    const int lane = threadIdx.x % 32;
    const int64_t row0 = first_row + lane / 4;
    const float sink = args.sinks != nullptr ? args.sinks[tile.head] : -INFINITY;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowResult result = softmax.finish(r, sink);
      lse[r] = result.lse;
      if (args.lse != nullptr && lane % 4 == 0 && row0 + 8 * r < tile.seqlen_q) {
        lse_row(tile)[row0 + 8 * r] = result.lse;
      }
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float &x = o[4 * j + 2 * r + c];
          x = result.empty ? 0.f : x * result.factor;
        }
      }
    }
  }

  // Each stmatrix writes 16 rows x 16 columns of a warp: matrices (row half, column half) = (0,0) (1,0) (0,1) (1,1), in
  // the order of the accumulator's registers. Lane l gives the address of row l % 16 and column half l / 16.
  __device__ __forceinline__ void stage(const float (&o)[kOutputs]) const {
    constexpr int kStepsPerBox = Traits::kBoxCols / 16;
    constexpr uint32_t kXorMask = Traits::kSwizzleBytes / 16 - 1;
    const int lane = threadIdx.x % 32;
    const int row = warpgroup * 64 + (threadIdx.x % 128) / 32 * 16 + lane % 16;
    char *base = reinterpret_cast<char *>(smem.out());
#pragma unroll
    for (int j = 0; j < Traits::kHeadDim / 16; ++j) {
      uint32_t at = (j / kStepsPerBox) * (Traits::kBlockM * Traits::kSwizzleBytes) + row * Traits::kSwizzleBytes +
                    (j % kStepsPerBox) * 32 + lane / 16 * 16;
      at ^= (at >> 3) & (kXorMask << 4);  // the swizzle of the tensor map, which repeats every 8 rows of 128 bytes
      ptx::stmatrix_x4(base + at, pack2<Element>(o[8 * j], o[8 * j + 1]), pack2<Element>(o[8 * j + 2], o[8 * j + 3]),
                       pack2<Element>(o[8 * j + 4], o[8 * j + 5]), pack2<Element>(o[8 * j + 6], o[8 * j + 7]));
    }
  }

  __device__ __forceinline__ void store_staged(const WorkTile &tile) const {
    const int64_t row0 = Traits::warpgroup_row(tile, warpgroup);
    if (row0 >= tile.seqlen_q) return;
    const bool packed = args.q_side.cu_seqlens != nullptr;
    ptx::TmaCoord at;
    at.row = static_cast<int32_t>(args.q_side.rows - tile.seqlen_q + row0);
    at.end = tile.q_end;
    at.head = tile.head;
    at.batch = packed ? 0 : tile.batch;
#pragma unroll
    for (int c = 0; c < Traits::kColBlocks; ++c) {
      at.col = c * Traits::kBoxCols;
      if (at.col < args.head_dim_v) {
        ptx::tma_store(&args.out_map, smem.out() + (c * Traits::kBlockM + warpgroup * 64) * Traits::kBoxCols, at);
      }
    }
    ptx::tma_store_commit_group();
  }
};

}  // namespace flash3::device
