// What the rows of a tile are.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/ptx.cuh"
#include "device/tile_traits.cuh"

namespace flash3::device {

// The queries of a head, or, in kernels that compute pieces, packed rows: row r of a sequence is query r / pack under
// the head r % pack of `pack` query heads that share a KV head, and "head" of a tile counts such heads together.
template <class Traits>
struct TileRows {
  const FwdArgs &args;

  __device__ __forceinline__ int32_t pack() const {
    return Traits::kPieces ? static_cast<int32_t>(args.pack.divisor) : 1;
  }
  __device__ __forceinline__ int64_t count(int32_t seqlen_q) const { return int64_t{seqlen_q} * pack(); }
  __device__ __forceinline__ int64_t query(int64_t row) const {
    if constexpr (!Traits::kPieces) return row;
    return args.pack.quotient(static_cast<uint32_t>(row));
  }
  // Of a row of a tile of `head`.
  __device__ __forceinline__ int32_t head(int32_t head, int64_t row) const {
    if constexpr (!Traits::kPieces) return head;
    return head * pack() + static_cast<int32_t>(row - query(row) * pack());
  }
  // Coordinates in the maps of q and out, whose boxes hold the rows of `pack` heads: heads come before rows there.
  static __device__ __forceinline__ ptx::TmaCoord in_order_of_map(const ptx::TmaCoord &at) {
    return {at.col, at.head, at.row, at.end, at.batch};
  }
  // Of q.
  __device__ __forceinline__ const typename Traits::Element *q(const WorkTile &tile, int64_t row) const {
    return row_of<typename Traits::Element>(args.q, tile.batch, tile.q_start + query(row), head(tile.head, row));
  }
};

}  // namespace flash3::device
