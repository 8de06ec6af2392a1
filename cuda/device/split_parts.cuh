// Finding the part of a thread block on the line of costs, from the lengths alone.
#pragma once

#include <cstdint>

#include "core/split_cursor.h"
#include "core/split_entries.h"
#include "core/split_schedule.h"
#include "device/ptx.cuh"
#include "device/sequence_costs.cuh"
#include "device/split_args.h"

namespace flash3::device {

// What a thread block has to do for one part; in shared memory.
struct SplitPart {
  int32_t begin, end;    // places on the line; none: nothing
  core::SplitTile tile;  // that holds the first one
};

// Lengths that are in no cache come from memory, while barriers are initialised.
__device__ __forceinline__ void prefetch_lengths(const core::SplitSchedule &schedule) {
  const auto b = static_cast<int32_t>(threadIdx.x);
  if (b < schedule.batch && schedule.k.filled.seqused != nullptr) ptx::prefetch(schedule.k.filled.seqused + b);
}

// The entry of a part.
__device__ __forceinline__ void note_part(const core::SplitSchedule &schedule, const Partials &partials,
                                          const core::SplitCursor &cursor, const core::SplitPartId &part,
                                          const core::SplitParts &parts) {
  core::SplitEntry &entry = partials.entries[part.index * schedule.num_lines + part.line];
  if (!cursor.on_line()) {
    entry.rows = 0;
  } else {
    entry = core::SplitEntries{schedule}.of_part(cursor.piece(), parts, part);
  }
}

// Those of the tiles that a part has whole, or the second piece of.
__device__ __forceinline__ void note_tiles(const core::SplitSchedule &schedule, const Partials &partials,
                                           core::SplitCursor cursor, const core::SplitPartId &part,
                                           const core::SplitParts &parts) {
#pragma unroll 1
  for (; cursor.on_line(); cursor.advance()) {
    const core::SplitPiece piece = cursor.piece();
    const core::SplitEntry entry = core::SplitEntries{schedule}.of_part(piece, parts, part);
    if (piece.whole || entry.rows > 0) partials.entries[core::SplitEntries{schedule}.place_of(piece)] = entry;
  }
}

// Collective over the thread block: every thread adds up the costs of some sequences, and the one whose sequences hold
// the part's first place finds out the rest, for all.
//
// With Traits::kWholeTiles a balanced schedule becomes one of one split where that does as well.
template <class Traits>
struct PartFinder {
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kWarps = kThreads / 32;

  core::SplitSchedule &schedule;
  const Partials &partials;
  typename Traits::SharedStorage &smem;

  __device__ __forceinline__ void prefetch() const { prefetch_lengths(schedule); }

  // Leaves the part in smem.part. Returns the parts of its line.
  __device__ __forceinline__ core::SplitParts find(const core::SplitPartId &part) const {
    const int32_t share = core::ceil_div(schedule.batch, kThreads);
    const int32_t first = static_cast<int32_t>(threadIdx.x) * share;
    const int32_t behind = min(first + share, schedule.batch);
    core::SplitParts parts;
    int32_t begin = 0, end = 0, at = 0;
    // Twice the same way: to add up the costs, and then, for one thread, to the sequence that holds the part's begin.
    // The code is there the second time.
#pragma unroll 1
    for (int round = 0; round < 2; ++round) {
      int32_t sum = 0;
      [[maybe_unused]] int32_t tiles = 0, largest = 0;
#pragma unroll 1
      for (int32_t b = first; b < behind; ++b) {
        const int32_t cost = schedule.sequence_cost(b);
        if constexpr (Traits::kWholeTiles) {
          if (round == 0) add_tiles(b, &tiles, &largest);
        }
        if (round == 1 && begin < schedule.behind(schedule.behind(at, sum), cost)) {
          smem.part = {begin, end, core::SplitTile::find(schedule, part.line, begin, b, at + sum)};
          break;
        }
        sum = schedule.behind(sum, cost);
      }
      if (round == 1) break;
      int32_t total;
      if constexpr (Traits::kWholeTiles) {
        largest = __reduce_max_sync(0xffffffffu, largest);
        if (threadIdx.x % 32 == 0) smem.warp_largest[threadIdx.x / 32] = largest;
      }
      at = scan(sum, &total);
      if constexpr (Traits::kWholeTiles) {
        if (schedule.balanced()) take_whole_tiles(tiles, first, &sum, &at, &total);
      }
      parts = schedule.parts(total);
      begin = parts.begin(part.index);
      end = parts.begin(part.index + 1);
      if (begin >= end && threadIdx.x == 0) smem.part.begin = smem.part.end = 0;
      if (!(begin < end && at <= begin && begin < schedule.behind(at, sum))) break;
    }
    __syncthreads();
    return parts;
  }

  __device__ __forceinline__ core::SplitCursor cursor() const {
    return {schedule, smem.part.begin, smem.part.end, smem.part.tile};
  }

  // What the line of find()'s parts costs; of a balanced schedule.
  __device__ __forceinline__ int32_t line_cost(const core::SplitParts &parts) const { return parts.total; }

  // What the merging kernel has to know; by one thread, once it has nothing else to do.
  __device__ __forceinline__ void note(const core::SplitPartId &part, const core::SplitParts &parts) const {
    if (schedule.balanced()) note_part(schedule, partials, cursor(), part, parts);
  }

 private:
  // Of sequence b, on a line.
  __device__ __forceinline__ void add_tiles(int32_t b, int32_t *tiles, int32_t *largest) const {
    const core::SplitLengths lengths = schedule.lengths(b);
    const int32_t m_blocks = schedule.num_m_blocks(lengths);
    const bool equal = schedule.tiles_cost_the_same();
    *tiles = schedule.behind(*tiles, schedule.heads_of_line * m_blocks);
#pragma unroll 1
    for (int32_t m = 0; m < (equal && m_blocks > 0 ? 1 : m_blocks); ++m) {
      *largest = max(*largest, schedule.tile_cost(schedule.range(lengths, m)));
    }
  }

  // Of the thread's sequences: tiles, cost, place, and the cost of all; in tiles, where whole ones do.
  __device__ __forceinline__ void take_whole_tiles(int32_t tiles, int32_t first, int32_t *cost, int32_t *at,
                                                   int32_t *total) const {
    int32_t largest = 0;
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) largest = max(largest, smem.warp_largest[w]);
    int32_t tiles_before, all_tiles;
    if (schedule.one_tile) {
      tiles_before = first * schedule.heads_of_line;
      all_tiles = schedule.batch * schedule.heads_of_line;
    } else {
      __syncthreads();
      tiles_before = scan(tiles, &all_tiles);
    }
    if (!schedule.whole_tiles_do(*total, all_tiles, largest)) return;
    schedule.num_splits = 1;
    *cost = tiles;
    *at = tiles_before;
    *total = all_tiles;
  }

  // The sum of x over the threads before this one, and over all.
  __device__ __forceinline__ int32_t scan(int32_t x, int32_t *total) const {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    int32_t inclusive = x;
#pragma unroll 1
    for (int offset = 1; offset < 32; offset *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (lane >= offset) inclusive = schedule.behind(inclusive, other);
    }
    if (lane == 31) smem.warp_costs[warp] = inclusive;
    __syncthreads();
    int32_t before = 0;
    *total = 0;
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before = schedule.behind(before, smem.warp_costs[w]);
      *total = schedule.behind(*total, smem.warp_costs[w]);
    }
    const int32_t in_warp = __shfl_up_sync(0xffffffffu, inclusive, 1);
    return lane == 0 ? before : schedule.behind(before, in_warp);
  }
};

// The same for calls of plain decoding, and quicker: once the threads have added up their shares, every warp finds the
// part for itself.
//
// Sums need no care: where one could be too large for a place on the line, the schedule is not balanced, and the call
// not computed here.
template <class Traits>
struct PlainPartFinder {
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kWarps = kThreads / 32;

  core::SplitSchedule &schedule;
  const Partials &partials;
  typename Traits::SharedStorage &smem;
  core::SplitCursor found = {schedule, 0, 0, {}};
  int32_t total = 0;

  __device__ __forceinline__ void prefetch() const { prefetch_lengths(schedule); }

  __device__ __forceinline__ core::SplitParts find(const core::SplitPartId &part) {
    add_up();
    __syncthreads();
    int32_t largest = 0;
    int32_t of_warp[kWarps];
    bool surplus = false;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      of_warp[w] = smem.warp_costs[w];
      total += of_warp[w];
      largest = max(largest, smem.warp_largest[w]);
      if constexpr (Traits::kPacked) surplus |= smem.warp_surplus[w];
    }
    const core::SplitParts parts = schedule.plain_parts(total, largest);
    found.at = parts.begin(part.index);
    found.end = parts.begin(part.index + 1);
    if (found.on_line()) find_tile(part, of_warp);
    if (Traits::kPacked && surplus) found.surplus.next = part.index * schedule.num_lines + part.line;
    return parts;
  }

  __device__ __forceinline__ core::SplitCursor cursor() const { return found; }

  // Parts of tiles that are cut alike have another measure.
  __device__ __forceinline__ int32_t line_cost(const core::SplitParts &) const { return total; }

  // Nothing where tiles are cut alike: the merging kernel finds that out for itself.
  __device__ __forceinline__ void note(const core::SplitPartId &part, const core::SplitParts &parts) const {
    if (schedule.even) return;
    if (schedule.entries_by_tile) {
      note_tiles(schedule, partials, found, part, parts);
    } else {
      note_part(schedule, partials, found, part, parts);
    }
  }

 private:
  __device__ __forceinline__ int32_t share() const { return core::ceil_div(schedule.batch, kThreads); }

  // The tile that a part begins with.
  __device__ __forceinline__ void find_tile(const core::SplitPartId &part, const int32_t (&of_warp)[kWarps]) {
    int32_t b = 0, begin = 0;
    if (schedule.even) {
      const auto cuts = static_cast<int32_t>(schedule.cuts.divisor);
      b = schedule.sequence_of_even_tile(schedule.even_tile(found.at));
      begin = b * schedule.heads_of_line * cuts;
    } else {
      find_sequence(of_warp, &b, &begin);
    }
    found.tile = core::SplitTile::find(schedule, part.line, found.at, b, begin);
  }

  // Of each thread its sequences' costs, of each warp those of its threads, and the largest tile.
  __device__ __forceinline__ void add_up() const {
    const int32_t first = static_cast<int32_t>(threadIdx.x) * share();
    SequenceCosts costs = SequenceCosts::of(schedule, first, 1, min(first + share(), schedule.batch));
    costs.total *= schedule.heads_of_line;
    smem.costs[threadIdx.x] = costs.total;
    costs.put_warp(smem.warp_costs, smem.warp_largest);
    if constexpr (Traits::kPacked) {
      const bool surplus = __any_sync(0xffffffffu, costs.surplus);
      if (threadIdx.x % 32 == 0) smem.warp_surplus[threadIdx.x / 32] = surplus;
    }
  }

  // That of place `found.at`, and where it begins.
  __device__ __forceinline__ void find_sequence(const int32_t (&of_warp)[kWarps], int32_t *b, int32_t *begin) const {
    int32_t warp = 0, before = 0;
#pragma unroll
    for (int w = 0, sum = 0; w + 1 < kWarps; ++w) {
      sum += of_warp[w];
      if (found.at >= sum) {
        warp = w + 1;
        before = sum;
      }
    }
    const int lane = threadIdx.x % 32;
    const int32_t own = smem.costs[32 * warp + lane];
    int32_t behind = own;
#pragma unroll 1
    for (int offset = 1; offset < 32; offset *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, behind, offset);
      if (lane >= offset) behind += other;
    }
    behind += before;
    const int holder = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, found.at < behind))) - 1;
    *b = (32 * warp + holder) * share();
    *begin = __shfl_sync(0xffffffffu, behind - own, holder);
#pragma unroll 1
    for (int32_t i = 1; i < share(); ++i) {
      const int32_t cost = schedule.sequence_cost(*b);
      if (found.at < *begin + cost) break;
      *begin += cost;
      ++*b;
    }
  }
};

}  // namespace flash3::device
