#include "launch/merge.h"

#include <algorithm>
#include <cstdint>

#include "core/split_config.h"
#include "device/merge_args.h"
#include "launch/start.h"

namespace flash3::launch {
namespace {

struct MergeLaunch {
  const void *function;
  dim3 blocks;
};

constexpr int64_t kMostBlocks = 4096;  // each takes several rows, tiles or sequences if there are more

// Whether so many pieces of so few rows are to be merged that all warps of a block share a row.
bool shares_rows(const device::SplitArgs &args) {
  constexpr int64_t kManyPieces = 8;       // that a warp adds up at once
  constexpr int64_t kRowsOfBlocks = 1024;  // so many that there is a warp for each do without whole blocks
  return args.schedule.num_splits > kManyPieces && args.partials.rows_of_split < kRowsOfBlocks;
}

// These fill in the rest of `merge`. Of pieces of the forward kernel where queries are packed.
MergeLaunch packed_launch(const SplitKernel &kernel, const device::SplitArgs &args, device::MergeArgs *merge) {
  const int32_t warps = kernel.merge_threads / 32;
  merge->warps_of_row = shares_rows(args) ? warps : 1;
  const int64_t units = warps / merge->warps_of_row;
  const int64_t blocks = std::min((args.partials.rows_of_split + units - 1) / units, kMostBlocks);
  return {kernel.merge_packed, dim3(static_cast<unsigned>(blocks))};
}

// Of a fixed number of splits.
MergeLaunch splits_launch(const flash3_params &p, const SplitKernel &kernel, const device::SplitArgs &args,
                          device::MergeArgs *merge) {
  const int64_t tiles = core::SplitBounds::of(p).tiles;
  constexpr int64_t kMostRows = 8;      // that get a block
  constexpr int64_t kRowsAtOnce = 256;  // or more, where whole blocks share rows and these are few
  const int64_t pairs = std::min(int64_t{p.batch} * p.nheads_k, kMostBlocks);
  const int64_t tiles_of_pair = std::clamp(tiles / pairs, int64_t{1}, kMostBlocks / pairs);
  const bool share_rows = shares_rows(args);
  merge->warps_of_row = share_rows ? kernel.merge_threads / 32 : 1;
  const int64_t most_rows = share_rows ? std::max(kMostRows, kRowsAtOnce / (pairs * tiles_of_pair)) : kMostRows;
  const dim3 blocks(static_cast<unsigned>(pairs), static_cast<unsigned>(tiles_of_pair),
                    static_cast<unsigned>(std::min(int64_t{args.partials.tile_rows}, most_rows)));
  return {kernel.merge_splits, blocks};
}

// Of a balanced schedule.
MergeLaunch parts_launch(const flash3_params &p, const SplitKernel &kernel, const device::SplitArgs &args,
                         device::MergeArgs *merge) {
  const core::SplitSchedule &schedule = args.schedule;
  const int64_t tiles = core::SplitBounds::of(p).tiles;
  const int32_t rows = args.partials.tile_rows;
  // As many blocks as find a place while the parts are computed.
  constexpr int32_t kFewBlocks = 128;
  const int32_t parts = schedule.parts_of_line * schedule.num_lines;
  const bool one_tile_a_line = tiles <= schedule.num_lines;  // the second part has its entry
  const bool by_tile = schedule.entries_by_tile;
  merge->first_entry = one_tile_a_line && !by_tile ? schedule.num_lines : 0;
  merge->rows_of_entry = core::Divisor::make(rows);
  merge->num_items = (by_tile || one_tile_a_line ? static_cast<int32_t>(tiles) : parts) * rows;
  // Rows that have many pieces are shared as long as that takes few blocks: more of them start later, and each fetches
  // its code.
  constexpr int64_t kPiecesOfWarp = 4, kSharingBlocks = 32;
  const int32_t warps = kernel.merge_threads / 32;
  merge->warps_of_row = 1;
  while (merge->warps_of_row < warps && parts > kPiecesOfWarp * merge->warps_of_row * tiles &&
         (2 * merge->warps_of_row * tiles * rows <= kSharingBlocks * warps || core::is_latent(p))) {
    merge->warps_of_row *= 2;
  }
  // Where every tile is in pieces, a warp has several rows: it pays to wait for more blocks to find a place.
  const bool all_cut = by_tile && schedule.cuts.divisor > 1;
  const int32_t most_blocks = merge->warps_of_row > 1 || !all_cut ? kFewBlocks : 2 * kFewBlocks;
  const int32_t units = warps / merge->warps_of_row;
  const int32_t blocks = (merge->num_items + units - 1) / units;
  return {kernel.merge_parts, dim3(static_cast<unsigned>(std::min(blocks, most_blocks)))};
}

}  // namespace

cudaError_t launch_merge(const flash3_params &p, const SplitKernel &kernel, const device::SplitArgs &args,
                         bool of_pieces, cudaStream_t stream) {
  device::MergeArgs merge = {};
  merge.schedule = args.schedule;
  merge.partials = args.partials;
  merge.out = args.out;
  merge.lse = args.lse;
  merge.lse_batch_stride = args.lse_batch_stride;
  merge.lse_head_stride = args.lse_head_stride;
  merge.packed_q = args.packed_q;
  merge.seqlen_q = args.seqlen_q;
  merge.head_dim_v = args.head_dim_v;
  merge.sinks = args.sinks;
  const auto launch_of = args.schedule.balanced() ? parts_launch : splits_launch;
  const bool by_row = of_pieces && args.packed_q;
  const MergeLaunch launch = by_row ? packed_launch(kernel, args, &merge) : launch_of(p, kernel, args, &merge);
  Start how{launch.blocks, kernel.merge_threads};
  how.early = true;
  return start(launch.function, how, &merge, stream);
}

}  // namespace flash3::launch
