// The scores of one key block for one warp, computed again from global memory with mma.sync: the way out of
// OnlineSoftmax::accept, taken when a row's scores jump far above everything before.
#pragma once

#include <cstdint>

#include "device/fwd_args.h"
#include "device/key_rows.cuh"
#include "device/ptx.cuh"
#include "device/tile_rows.cuh"
#include "device/tile_traits.cuh"
#include "device/warp_mma.cuh"

namespace flash3::device {

// s = <q, k> in the layout of wgmma's accumulators, for the 16 rows from `first_row` on and the kS / 2 keys from
// `first_key` on, all of which are inside the sequence. Rows behind its end repeat the last one.
template <class Traits, int kS>
__device__ __forceinline__ void recompute_scores(const FwdArgs &args, const WorkTile &tile, int64_t first_row,
                                                 int first_key, float (&s)[kS]) {
  using Element = typename Traits::Element;
  using Atom = typename WarpMma<Element>::Atom;
  const int lane = threadIdx.x % 32;
  const auto two = [&](const Element *row, int col) {
    return col < args.head_dim ? *reinterpret_cast<const uint32_t *>(row + col) : 0u;
  };
  const TileRows<Traits> rows{args};
  const int64_t last = rows.count(tile.seqlen_q) - 1;
  const Element *q0 = rows.q(tile, min(first_row + lane / 4, last));
  const Element *q1 = rows.q(tile, min(first_row + lane / 4 + 8, last));
  const KeyRows<Traits> k_rows(args, args.k, tile, KeyRows<Traits>::start(args, tile, first_key, lane / 4),
                               tile.head / args.group);
#pragma unroll
  for (int i = 0; i < kS; ++i) s[i] = 0.f;
#pragma unroll 1
  for (int col = 2 * (lane % 4); col < args.head_dim; col += 16) {
    // Places in a cache are looked up again for every step: kept, they would take the registers of the main loop.
    if constexpr (Traits::kCache) ptx::compiler_fence();
    const uint32_t a[4] = {two(q0, col), two(q1, col), two(q0, col + 8), two(q1, col + 8)};
#pragma unroll
    for (int j = 0; j < kS / 4; ++j) {
      const Element *k = k_rows.at(8 * j);
      Atom::fma(s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3], a[0], a[1], a[2], a[3], two(k, col),
                two(k, col + 8), s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]);
    }
  }
}

}  // namespace flash3::device
