// Rows of K or V of a tile in global memory, for the few that are read again there.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "device/fwd_args.h"
#include "device/tile_traits.cuh"

namespace flash3::device {

// In the order of keys from `Start` on, wherever they lie.
template <class Traits, bool kCache = Traits::kCache>
struct KeyRows {
  using Element = typename Traits::Element;
  using Start = int64_t;  // row

  static __device__ __forceinline__ Start start(const FwdArgs &args, const WorkTile &tile, int first_key,
                                                int lane_key) {
    return args.k_side.span(tile.batch).start + first_key + lane_key;
  }

  const TensorRows &rows;
  const Element *const first;

  __device__ __forceinline__ KeyRows(const FwdArgs &, const TensorRows &of, const WorkTile &tile, Start start,
                                     int32_t kv_head)
      : rows(of), first(row_of<Element>(of, tile.batch, start, kv_head)) {}

  __device__ __forceinline__ const Element *at(int64_t key) const { return first + key * rows.row_stride; }
};

template <class Traits>
struct KeyRows<Traits, true> {
  using Element = typename Traits::Element;
  using Start = core::KeySpan;

  static __device__ __forceinline__ Start start(const FwdArgs &args, const WorkTile &tile, int first_key,
                                                int lane_key) {
    core::KeySpan span = args.cache.span(tile.batch);
    span.first_row += first_key + lane_key;
    return span;
  }

  const core::KvCache &cache;
  const TensorRows &rows;
  const core::KeySpan span;
  const int32_t kv_head;

  __device__ __forceinline__ KeyRows(const FwdArgs &args, const TensorRows &of, const WorkTile &, const Start &start,
                                     int32_t head)
      : cache(args.cache), rows(of), span(start), kv_head(head) {}

  // A function that is called: where scores are computed again there are sixteen of it, beside the main loop.
  __device__ __noinline__ const Element *at(int64_t key) const {
    const core::RowPlace place = cache.place(span, span.first_row + key);
    return row_of<Element>(rows, place.entry, place.row, kv_head);
  }
};

}  // namespace flash3::device
