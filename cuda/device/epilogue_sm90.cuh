// From a warpgroup's accumulated output to memory: normalise, write LSE, stage in shared memory, store through TMA.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/mainloop_sm90.cuh"
#include "device/pack.cuh"
#include "device/ptx.cuh"
#include "device/repair.cuh"
#include "device/scores.cuh"
#include "device/softmax.cuh"
#include "device/swizzle.cuh"
#include "device/tile_rows.cuh"
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
    const RowResults results = totals(tile, softmax);
    store_lse(tile, results.lse);
    return results;
  }

  // The same, with what the LSE follows from in `lse`, a place for each row of the warpgroup: another warp stores it.
  __device__ __forceinline__ RowResults finish_rows(const WorkTile &tile, const OnlineSoftmax &softmax,
                                                    RowLse *lse) const {
    const RowResults results = totals(tile, softmax);
    const int lane = threadIdx.x % 32;
    const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    if (lane % 4 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        // One number at a time: what is stored as a pair is in two registers side by side. The references of both rows
        // would be in even ones then, and the main loop would read one for each score.
        volatile float *const to = &lse[row + 8 * r].top;
        to[0] = results.lse[r].top;
        to[1] = results.lse[r].total;
      }
    }
    return results;
  }

  // From the accumulated output to the result, which is put down: staged at `to` in shared memory or, in float32, as a
  // partial result. All its warps must know that nobody reads at `to` any more.
  __device__ __forceinline__ void put_down(const WorkTile &tile, const RowResults &results, float (&o)[kOutputs],
                                           Element *to) const {
    const bool suspect = Repair<Traits>::suspects(args, o);
    normalise(results, o);
    if (is_partial()) {
      store_partial(tile, o);
    } else {
      stage(o, to);
    }
    if (suspect) repair_rows(args, warpgroup, ptx::shared_address(&tile), ptx::shared_address(to));
  }

  // put_down(), and a store through TMA, which still reads at `to` when this returns.
  __device__ __forceinline__ void store(const WorkTile &tile, const RowResults &results, float (&o)[kOutputs],
                                        Element *to) const {
    put_down(tile, results, o, to);
    if (is_partial()) return;
    ptx::fence_proxy_async_shared();
    ptx::bar_sync(NamedBarriers<Traits>::epilogue(warpgroup), 128);
    store_boxes(tile, to, ptx::uniform(threadIdx.x % 128 / 32), 4);
  }

  // The warp's 16 rows in the layout of the tensor map. Each stmatrix writes 16 rows x 16 columns: matrices (row half,
  // column half) = (0,0) (1,0) (0,1) (1,1), in the order of the accumulator's registers. Lane l gives the address of
  // row l % 16 and column half l / 16.
  __device__ __forceinline__ void stage(const float (&o)[kOutputs], Element *to) const {
    const int lane = threadIdx.x % 32;
    char *const rows = warp_rows(to);
#pragma unroll
    for (int j = 0; j < Traits::kHeadDimV / 16; ++j) {
      ptx::stmatrix_x4(staged_at(rows, lane % 16, 16 * j + lane / 16 * 8), pack2<Element>(o[8 * j], o[8 * j + 1]),
                       pack2<Element>(o[8 * j + 2], o[8 * j + 3]), pack2<Element>(o[8 * j + 4], o[8 * j + 5]),
                       pack2<Element>(o[8 * j + 6], o[8 * j + 7]));
    }
  }

  // The warpgroup's 64 rows, by one warp or, a column block to each, by all of them: issuing a store takes some hundred
  // clocks.
  __device__ __forceinline__ void store_boxes(const WorkTile &tile, const Element *to, int warp = 0,
                                              int warps = 1) const {
    const int64_t row0 = Traits::warpgroup_row(tile, warpgroup);
    const TileRows<Traits> rows{args};
    if (row0 >= rows.count(tile.seqlen_q)) return;
#pragma unroll
    for (int pass = 0; pass < Traits::kColBlocksV; pass += warps) {
      const int c = pass + warp;
      const int32_t col = Traits::first_column() + c * Traits::kBoxCols;
      if (c >= Traits::kColBlocksV || col >= args.head_dim_v || !ptx::elect_one()) continue;
      ptx::TmaCoord at;
      at.col = col;
      at.row = static_cast<int32_t>(args.q_side.rows - tile.seqlen_q + rows.query(row0));
      at.end = tile.q_end;
      at.head = tile.head * rows.pack();
      at.batch = Traits::packed(args.q_side) ? 0 : tile.batch;
      if constexpr (Traits::kPieces) at = rows.in_order_of_map(at);
      ptx::tma_store(&args.out_map, to + c * Traits::kStagedRows * Traits::kBoxCols, at);
      ptx::tma_store_commit_group();
    }
  }

  // Of the warpgroup's 64 rows, by one warp.
  __device__ __forceinline__ void store_staged_lse(const WorkTile &tile, const RowLse *lse) const {
    if (args.lse == nullptr) return;
    const int64_t row0 = Traits::warpgroup_row(tile, warpgroup);
    float *const at = lse_at(tile, row0);
#pragma unroll
    for (int i = 0; i < 64; i += 32) {
      const int row = i + threadIdx.x % 32;
      if (row0 + row < tile.seqlen_q) at[row] = lse[row].value();
    }
  }

  // A tile whose rows see no key: zeros and LSE, without touching shared memory that the producer may be filling.
  __device__ __forceinline__ void store_empty(const WorkTile &tile) const {
    store_empty_tile(args, warpgroup, ptx::shared_address(&tile));
  }

 private:
  __device__ __forceinline__ int64_t warp_row(const WorkTile &tile) const { return Traits::warp_row(tile, warpgroup); }

  // What put_down() has put down of a warp's 16 rows, two columns at a time.
  struct PutDown {
    const Epilogue &epilogue;
    const WorkTile &tile;
    char *const staged;

    __device__ __forceinline__ float2 get(int row, int col) const {
      if (epilogue.is_partial()) return *partial_at(row, col);
      const auto *const x = reinterpret_cast<const Element *>(staged_at(staged, row, col / 8 * 8)) + col % 8;
      return make_float2(static_cast<float>(x[0]), static_cast<float>(x[1]));
    }
    __device__ __forceinline__ void put(int row, int eight, int col, float2 x) const {
      if (epilogue.is_partial()) {
        *partial_at(row, eight + col) = x;
      } else {
        *reinterpret_cast<uint32_t *>(staged_at(staged, row, eight) + col * 2) = pack2<Element>(x.x, x.y);
      }
    }
    // Of the row, one more logit without a value; -inf: none.
    __device__ __forceinline__ float sink_log2(int row) const {
      const FwdArgs &args = epilogue.args;
      if (args.sinks == nullptr || epilogue.is_partial()) return -INFINITY;
      return args.sinks[TileRows<Traits>{args}.head(tile.head, epilogue.warp_row(tile) + row)] * core::kLog2e;
    }

   private:
    __device__ __forceinline__ float2 *partial_at(int row, int col) const {
      const int64_t at = epilogue.partial_row(tile, epilogue.warp_row(tile) + row);
      return reinterpret_cast<float2 *>(epilogue.args.partials.out + at * epilogue.args.head_dim_v + col);
    }
  };

  // Rare, and hence functions that are called: their code lies behind all that every tile comes past. They get places
  // in shared memory, of the tile and where its output is staged, in 32 bits: each register of a call counts in kernels
  // that are short of them.
  static __device__ __noinline__ void repair_rows(const FwdArgs &args, int warpgroup, uint32_t tile, uint32_t to) {
    const Epilogue epilogue(args, warpgroup);
    const WorkTile &of_rows = *ptx::from_shared_address<WorkTile>(tile);
    char *const staged = warp_rows(ptx::from_shared_address<Element>(to));
    Repair<Traits>{args, of_rows, epilogue.warp_row(of_rows)}.run(PutDown{epilogue, of_rows, staged});
  }
  static __device__ __noinline__ void store_empty_tile(const FwdArgs &args, int warpgroup, uint32_t place) {
    const Epilogue epilogue(args, warpgroup);
    const WorkTile &tile = *ptx::from_shared_address<WorkTile>(place);
    const TileRows<Traits> tile_rows{args};
    const int64_t row0 = Traits::warpgroup_row(tile, warpgroup);
    const int rows = static_cast<int>(min(int64_t{64}, tile_rows.count(tile.seqlen_q) - row0));
    if (epilogue.is_partial()) {
      for (int i = threadIdx.x % 128; i < rows; i += 128) {
        args.partials.lse[epilogue.partial_row(tile, row0 + i)] = -INFINITY;
      }
      return;  // then nobody reads the rest
    }
    const int chunks = args.head_dim_v / 8;
    for (int i = threadIdx.x % 128; i < rows * chunks; i += 128) {
      const int64_t row = row0 + i / chunks;
      const Element *at =
          row_of<Element>(args.out, tile.batch, tile.q_start + tile_rows.query(row), tile_rows.head(tile.head, row));
      *reinterpret_cast<uint4 *>(const_cast<Element *>(at) + i % chunks * 8) = make_uint4(0, 0, 0, 0);
    }
    if (args.lse == nullptr) return;
    for (int i = threadIdx.x % 128; i < rows; i += 128) {
      const int32_t head = tile_rows.head(tile.head, row0 + i);
      *epilogue.lse_at(tile, row0 + i) = args.sinks != nullptr ? args.sinks[head] : -INFINITY;
    }
  }

  // Of a warp, where its warpgroup's output is staged at `to`; and a place among them, from a multiple of 8 columns on.
  static __device__ __forceinline__ char *warp_rows(Element *to) {
    return reinterpret_cast<char *>(to + threadIdx.x % 128 / 32 * 16 * Traits::kBoxCols);
  }
  static __device__ __forceinline__ char *staged_at(char *rows, int row, int col) {
    return rows + swizzled_offset<Traits::kSwizzleBytes, Traits::kStagedRows>(row, col);
  }

  // Whether the tile's keys are in pieces, so that this is the result of one of them.
  __device__ __forceinline__ bool is_partial() const { return Traits::kPieces && args.pieces.divisor > 1; }

  // A partial result has no sinks: it is for the merging to count them once.
  __device__ __forceinline__ RowResults totals(const WorkTile &tile, const OnlineSoftmax &softmax) const {
    if (args.sinks == nullptr || is_partial()) return softmax.finish();
    if constexpr (Traits::kPieces) {
      const TileRows<Traits> rows{args};
      const int64_t row0 = warp_row(tile) + threadIdx.x % 32 / 4;
      return softmax.finish({{args.sinks[rows.head(tile.head, row0)], args.sinks[rows.head(tile.head, row0 + 8)]}});
    }
    const float sink = args.sinks[tile.head];
    return softmax.finish({{sink, sink}});
  }

  // Straight from the registers: pieces are long.
  __device__ __forceinline__ void store_partial(const WorkTile &tile, const float (&o)[kOutputs]) const {
    const int lane = threadIdx.x % 32;
    const int64_t row0 = warp_row(tile) + lane / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row0 + 8 * r >= TileRows<Traits>{args}.count(tile.seqlen_q)) continue;
      float *const to = args.partials.out + partial_row(tile, row0 + 8 * r) * args.head_dim_v;
#pragma unroll
      for (int j = 0; j < kOutputs / 4; ++j) {
        const int col = 8 * j + 2 * (lane % 4);
        if (col >= args.head_dim_v) continue;
        *reinterpret_cast<float2 *>(to + col) = make_float2(o[4 * j + 2 * r], o[4 * j + 2 * r + 1]);
      }
    }
  }

  // Of a row of the sequence, in the tile's heads.
  __device__ __forceinline__ float *lse_at(const WorkTile &tile, int64_t row) const {
    const TileRows<Traits> rows{args};
    const int64_t b = Traits::packed(args.q_side) ? tile.q_start : tile.batch * args.lse_batch_stride;
    return args.lse + b + rows.head(tile.head, row) * args.lse_head_stride + rows.query(row);
  }

  // The same among the partial results, of the tile's piece.
  __device__ __forceinline__ int64_t partial_row(const WorkTile &tile, int64_t row) const {
    const TileRows<Traits> rows{args};
    const int64_t first = Traits::packed(args.q_side) ? tile.q_start : tile.batch * args.q_side.rows;
    return args.partials.row_of_split(tile.valid - 1, first + rows.query(row), rows.head(tile.head, row),
                                      args.nheads * rows.pack());
  }

  static __device__ __forceinline__ void normalise(const RowResults &results, float (&o)[kOutputs]) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] *= results.factor[i / 2 % 2];
    if (!__any_sync(0xffffffffu, results.empty[0] || results.empty[1])) return;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = results.empty[i / 2 % 2] ? 0.f : o[i];
  }

  __device__ __forceinline__ void store_lse(const WorkTile &tile, const RowLse (&lse)[2]) const {
    const int lane = threadIdx.x % 32;
    const int64_t row0 = warp_row(tile) + lane / 4;
    if constexpr (Traits::kPieces) {
      if (lane % 4 != 0 || (args.lse == nullptr && !is_partial())) return;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t row = row0 + 8 * r;
        if (row >= TileRows<Traits>{args}.count(tile.seqlen_q)) continue;
        *(is_partial() ? args.partials.lse + partial_row(tile, row) : lse_at(tile, row)) = lse[r].value();
      }
      return;
    }
    if (args.lse == nullptr || lane % 4 != 0 || Traits::first_column() != 0) return;
    float *const at = lse_at(tile, row0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row0 + 8 * r < tile.seqlen_q) at[8 * r] = lse[r].value();
    }
  }
};

}  // namespace flash3::device
