// Merging the partial results of the split-KV kernel: a result of a row and head is a weighted sum of those of its
// pieces. One warp computes it where there are few pieces, or many rows, otherwise several of a block.
//
// This is the end of a call, and short: what takes time is waiting, for the kernel before, for memory, and for code,
// which is in no cache. So blocks of a balanced schedule, which start while its last parts are computed, rehearse: they
// go through everything once before the results are there, with whatever lies in the first place of theirs in memory,
// and store nothing. All instructions are run then, which is why stores are not branched around. Reads go past L1,
// which does not see what others have written since.
#pragma once

#include <cstdint>

#include "core/split_entries.h"
#include "device/find_cuts.cuh"
#include "device/merge_args.h"
#include "device/merge_rows.cuh"
#include "device/ptx.cuh"
#include "device/split_args.h"

namespace flash3::device {

__device__ __forceinline__ core::SplitEntry load_past_l1(const core::SplitEntry *entry) {
  constexpr int kWords = sizeof(core::SplitEntry) / 4;
  core::SplitEntry out;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    reinterpret_cast<int32_t *>(&out)[i] = __ldcg(reinterpret_cast<const int32_t *>(entry) + i);
  }
  return out;
}

// Of a balanced schedule. A unit, which is the warps that share a row, takes item number `unit`, and every
// num_units-th behind it; an item is a row of an entry.
//
// Up to 128 columns it has the registers that the split-KV kernel leaves to a block beside it: left to the compiler,
// fewer loads would be on their way at once.
template <class Element, int kCols>
__global__ void __launch_bounds__(kMergeThreads, kCols <= 4 ? 1 : 0)
    merge_parts_kernel(const __grid_constant__ MergeArgs args) {
  __shared__ MergeShared<kCols> shared;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  core::SplitSchedule schedule = args.schedule;
  if (schedule.allows_even_cuts()) find_cuts<kMergeThreads>(schedule);
  if (schedule.nothing_to_merge()) {
    // One warp sees to it that this kernel does not end before the one whose results are awaited behind it. The fewer
    // have to wake up for that the sooner it ends.
    if (blockIdx.x == 0 && warp == 0) ptx::wait_for_previous_kernel();
    return;
  }
  const auto block = static_cast<int32_t>(blockIdx.x);
  const auto blocks = static_cast<int32_t>(gridDim.x);
  const int32_t units = kMergeWarps / args.warps_of_row;  // of a block
  const int32_t unit = units * block + warp / args.warps_of_row;
  const int32_t num_units = units * blocks;
  const auto entry_of = [&args](int32_t item) {
    const uint32_t entry = args.rows_of_entry.quotient(static_cast<uint32_t>(min(item, args.num_items - 1)));
    return args.partials.entries + args.first_entry + entry;
  };
  const auto row_of_entry = [&args](int32_t item) {
    return item - static_cast<int32_t>(args.rows_of_entry.quotient(item) * args.rows_of_entry.divisor);
  };
  // Of a tile that is cut like all others.
  const auto has_row = [&](int32_t item) {
    if (!schedule.packs_few) return true;  // all of them have as many
    const auto place = static_cast<int32_t>(args.rows_of_entry.quotient(item));
    return row_of_entry(item) < core::SplitEntries{schedule}.of_even_tile(place).rows;
  };
  // Where the pieces of the first row are, if tiles are cut alike: divisions that need no results.
  typename Merge<Element, kCols>::Row ahead = {};
  if (schedule.even) {
    const int32_t item = min(unit, args.num_items - 1);
    const auto place = static_cast<int32_t>(args.rows_of_entry.quotient(item));
    ahead = Merge<Element, kCols>{args, shared, false}.row(core::SplitEntries{schedule}.of_even_tile(place),
                                                           row_of_entry(item));
  }
#pragma unroll 1
  for (int round = 0; round < 2; ++round) {
    const bool real = round == 1;
    if (real) ptx::wait_for_previous_kernel();
    const Merge<Element, kCols> merger{args, shared, real};
#pragma unroll 1
    for (int32_t base = unit; base < args.num_items; base += 32 * num_units) {
      // Most have nothing to merge: each lane looks at one.
      const int32_t own = base + lane * num_units;
      const bool there =
          own < args.num_items && (schedule.even ? has_row(own) : row_of_entry(own) < __ldcg(&entry_of(own)->rows));
      uint32_t todo = __ballot_sync(0xffffffffu, there);
      if (!real) todo = 1;
#pragma unroll 1
      for (; todo != 0; todo &= todo - 1) {
        const int32_t item = base + (__ffs(static_cast<int>(todo)) - 1) * num_units;
        auto row = ahead;
        if (!real || !schedule.even || item != unit) {
          const auto place = static_cast<int32_t>(args.rows_of_entry.quotient(item));
          core::SplitEntry entry =
              schedule.even ? core::SplitEntries{schedule}.of_even_tile(place) : load_past_l1(entry_of(item));
          if (!real) entry = {0, 0, 0, 1, args.warps_of_row, 0, 0, 0, 0};
          row = merger.row(entry, real ? row_of_entry(item) : 0);
        }
        merger.merge(row);
      }
      if (!real) break;
    }
  }
}

// Of a fixed number of splits. Block (x, y, z): pair x of sequence and KV head, and every gridDim.x-th behind it; of
// those tile y, and every gridDim.y-th; of that as many rows as its warps share among them, from there on every
// gridDim.z-th time as many.
template <class Element, int kCols>
__global__ void __launch_bounds__(kMergeThreads) merge_splits_kernel(const __grid_constant__ MergeArgs args) {
  __shared__ MergeShared<kCols> shared;
  const Merge<Element, kCols> merger{args, shared, true};
  const core::SplitSchedule &s = args.schedule;
  const int64_t pairs = int64_t{s.batch} * s.nheads_k;
  const auto block = static_cast<int32_t>(blockIdx.z);
  const auto blocks = static_cast<int32_t>(gridDim.z);
  const int32_t warp = threadIdx.x / 32;
  ptx::wait_for_previous_kernel();
#pragma unroll 1
  for (int64_t i = blockIdx.x; i < pairs; i += gridDim.x) {
    const auto b = static_cast<int32_t>(i / s.nheads_k);
    const auto kv_head = static_cast<int32_t>(i - int64_t{b} * s.nheads_k);
    const int32_t m_blocks = s.num_m_blocks(s.lengths(b));
#pragma unroll 1
    for (int32_t m = blockIdx.y; m < m_blocks; m += gridDim.y) {
      const core::SplitEntry entry = core::SplitEntries{s}.of_tile(b, kv_head, m);
      const int32_t units = kMergeWarps / args.warps_of_row;
      const int32_t first = units * block + warp / args.warps_of_row;
      const int32_t step = units * blocks;
#pragma unroll 1
      for (int32_t r = first; r < entry.rows; r += step) merger.merge(merger.row(entry, r));
    }
  }
}

// The sequence that a row of packed queries is in; -1: it is in none. By a warp, whose lanes look at one sequence each.
// A wrong cu_seqlens_q may lead astray, and then all sequences are looked at: those whose own ends are right have the
// rows that no wrong one claims.
__device__ __forceinline__ int32_t sequence_of(const core::SplitSchedule &schedule, int64_t row) {
  const int lane = threadIdx.x % 32;
  const int32_t *const begin = schedule.q.cu_seqlens;
  int32_t first = 0, left = schedule.batch;
  while (left > 1) {
    const int32_t step = core::ceil_div(left, 32);
    const bool begins_before = lane * step < left && begin[first + lane * step] <= row;
    const uint32_t before = __ballot_sync(0xffffffffu, begins_before);
    const int32_t last = before == 0 ? 0 : (31 - __clz(static_cast<int>(before))) * step;
    first += last;
    left = min(step, left - last);
  }
  if (begin[first] <= row && row < begin[first + 1]) return first;
  for (int32_t base = 0; base < schedule.batch; base += 32) {
    const int32_t b = base + lane;
    const bool holds = b < schedule.batch && begin[b] <= row && row < begin[b + 1];
    const uint32_t holding = __ballot_sync(0xffffffffu, holds);
    if (holding != 0) return base + __ffs(static_cast<int>(holding)) - 1;
  }
  return -1;
}

// The same of packed queries in pieces of the forward kernel, whose sequences may be of very different lengths: row by
// row.
template <class Element, int kCols>
__global__ void __launch_bounds__(kMergeThreads) merge_packed_kernel(const __grid_constant__ MergeArgs args) {
  __shared__ MergeShared<kCols> shared;
  const Merge<Element, kCols> merger{args, shared, true};
  const core::SplitSchedule &s = args.schedule;
  const int32_t warp = threadIdx.x / 32;
  const int32_t units = kMergeWarps / args.warps_of_row;
  const int64_t nheads = int64_t{s.group.divisor} * s.nheads_k;
  ptx::wait_for_previous_kernel();
#pragma unroll 1
  for (int64_t item = int64_t{units} * blockIdx.x + warp / args.warps_of_row; item < s.q.rows * nheads;
       item += int64_t{units} * gridDim.x) {
    const int64_t row = item / nheads;
    const int32_t b = sequence_of(s, row);
    if (b < 0) continue;
    const core::SeqSpan span = s.q.span(b);
    if (row < span.start || row >= span.start + span.len) continue;
    merger.merge(merger.packed_row(b, row, static_cast<int32_t>(item - row * nheads)));
  }
}

}  // namespace flash3::device
