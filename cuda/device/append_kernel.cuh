// Run before the kernel of a call with new keys or rotary embedding, unless that does it itself (new_rows.cuh): writes
// new rows of k and v into the cache and a rotated copy of q. A block takes a few rows that follow each other in their
// tensor, whatever sequences they belong to: where a row comes from is known without the lengths on the device, so its
// loads are under way while one thread a row finds out where it goes.
#pragma once

#include <cstdint>

#include "device/append_args.h"
#include "device/ptx.cuh"
#include "device/rotary.cuh"

namespace flash3::device {

// Where a row goes, and the angle that it is turned by.
struct alignas(16) Destination {
  int32_t entry;  // -1: nowhere
  int32_t row;
  int32_t position;

  __device__ static Destination nowhere() { return {-1, 0, 0}; }
};

template <Moved kMoved>
__device__ __forceinline__ const RowMove &move_of(const AppendArgs &args) {
  if constexpr (kMoved == Moved::kNewKeys) return args.new_keys;
  if constexpr (kMoved == Moved::kNewValues) return args.new_values;
  if constexpr (kMoved == Moved::kQueries) return args.queries;
}

// Of row t of sequence b.
template <Moved kMoved>
__device__ __forceinline__ Destination destination_of(const AppendArgs &args, int32_t b, int64_t t) {
  if constexpr (kMoved == Moved::kQueries) {
    const core::SeqSide &side = args.queries.side;
    const core::SeqSpan span = side.span(b);
    if (t >= span.len) return Destination::nowhere();
    return {side.cu_seqlens != nullptr ? 0 : b, static_cast<int32_t>(span.start + t),
            static_cast<int32_t>(args.rotary.positions.of_query_row(b, t))};
  } else {
    const bool turned = kMoved == Moved::kNewKeys && args.rotary.positions.base != nullptr;
    const auto position = static_cast<int32_t>(turned ? args.rotary.positions.of_new_row(b, t) : 0);
    const core::KeySpan span = args.cache.span(b);
    if (t >= span.appended) return Destination::nowhere();
    const core::RowPlace place = args.cache.place(span, span.first_appended_row() + t);
    if (!place.named) return Destination::nowhere();
    return {static_cast<int32_t>(place.entry), static_cast<int32_t>(place.row), position};
  }
}

// Which part of every row a thread moves.
template <class Element, bool kHalves, Moved kMoved>
class Unit {
 public:
  static constexpr bool kTurns = kMoved != Moved::kNewValues;

  struct Values {
    RowVector x, y;  // y: only where the pairs are halves
  };

  __device__ __forceinline__ Unit(const AppendArgs &args, int32_t u) : args_(args) {
    const RowMove &move = move_of<kMoved>(args);
    head_ = static_cast<int32_t>(move.units_of_head.quotient(u));
    const auto i = static_cast<int32_t>(u - head_ * move.units_of_head.divisor);
    rotated_ = kTurns && i < move.rotated_units;
    column_ = 8 * i + (kTurns && kHalves && !rotated_ ? args.rotary.half : 0);
  }

  // Row `row` of entry `entry` of the tensor it comes from.
  __device__ __forceinline__ Values load(int32_t entry, int32_t row) const {
    const Element *const data = row_of<Element>(move_of<kMoved>(args_).from, entry, row, head_) + column_;
    Values values;
    values.x = *reinterpret_cast<const RowVector *>(data);
    if (in_halves()) values.y = *reinterpret_cast<const RowVector *>(data + args_.rotary.half);
    return values;
  }

  __device__ __forceinline__ void store(const Destination &to, Values values) const {
    if (rotated_) turn(to.position, &values);
    // k and v are const in flash3_params, as calls that append nothing only read them.
    auto *const data =
        const_cast<Element *>(row_of<Element>(move_of<kMoved>(args_).to, to.entry, to.row, head_)) + column_;
    *reinterpret_cast<RowVector *>(data) = values.x;
    if (in_halves()) *reinterpret_cast<RowVector *>(data + args_.rotary.half) = values.y;
  }

 private:
  __device__ __forceinline__ bool in_halves() const { return kTurns && kHalves && rotated_; }

  __device__ __forceinline__ void turn(int64_t position, Values *values) const {
    const auto *const cos = static_cast<const Element *>(args_.rotary.cos) + position * args_.rotary.cos_row_stride;
    const auto *const sin = static_cast<const Element *>(args_.rotary.sin) + position * args_.rotary.sin_row_stride;
    if constexpr (kHalves) {
      turn_halves(cos + column_, sin + column_, &values->x, &values->y);
    } else {
      turn_neighbours(cos + column_ / 2, sin + column_ / 2, &values->x);
    }
  }

  const AppendArgs &args_;
  int32_t head_, column_;
  bool rotated_;
};

struct AppendShared {
  Destination destinations[kMostRowsPerBlock];
  // Packed:
  int32_t owners[kMostRowsPerBlock];  // a sequence of each row; -1: it has none
  int32_t more_owners;                // whether there are rows with another one
};

// One block's rows, from row `first` of the tensor or of all batch entries on, and of these as many units as it has
// threads for.
template <class Element, bool kHalves, Moved kMoved>
class RowMover {
 public:
  __device__ __forceinline__ RowMover(const AppendArgs &args, int32_t block, AppendShared &shared)
      : args_(args),
        move_(move_of<kMoved>(args)),
        shared_(shared),
        rows_at_once_(kAppendThreads >> move_.threads_per_row_log2) {
    const auto row_block = static_cast<int32_t>(move_.blocks_of_row.quotient(block));
    const int32_t rows = rows_at_once_ * args.rows_per_thread;
    first_ = int64_t{row_block} * rows;
    num_rows_ = static_cast<int32_t>(core::SeqSide::clamp(move_.rows - first_, 0, rows));
    const int32_t threads_per_row = 1 << move_.threads_per_row_log2;
    first_unit_ = (block - row_block * static_cast<int32_t>(move_.blocks_of_row.divisor)) * threads_per_row;
  }

  __device__ __forceinline__ void run() {
    const int32_t thread = threadIdx.x & ((1 << move_.threads_per_row_log2) - 1);
    const int32_t first_row = threadIdx.x >> move_.threads_per_row_log2;
    const Unit<Element, kHalves, kMoved> unit(args_, first_unit_ + thread);
    const int32_t num_rows = first_unit_ + thread < move_.units ? num_rows_ : 0;
    typename Unit<Element, kHalves, kMoved>::Values values[kMostRowsPerThread];
#pragma unroll
    for (int i = 0; i < kMostRowsPerThread; ++i) {
      const int32_t r = first_row + i * rows_at_once_;
      if (r < num_rows) values[i] = load(unit, r);
    }
    find_destinations();
#pragma unroll
    for (int i = 0; i < kMostRowsPerThread; ++i) {
      const int32_t r = first_row + i * rows_at_once_;
      if (r >= num_rows) break;
      const Destination to = shared_.destinations[r];
      if (to.entry >= 0) unit.store(to, values[i]);
    }
    if (kMoved != Moved::kQueries && packed() && shared_.more_owners != 0) move_to_more_owners();
  }

 private:
  __device__ __forceinline__ bool packed() const { return move_.side.cu_seqlens != nullptr; }

  // Of row r of the block; dense.
  __device__ __forceinline__ int32_t entry_of(int32_t r) const {
    return static_cast<int32_t>(move_.rows_of_entry.quotient(static_cast<uint32_t>(first_ + r)));
  }

  __device__ __forceinline__ int32_t row_in_entry(int32_t r, int32_t entry) const {
    return static_cast<int32_t>(first_ + r - int64_t{entry} * move_.rows_of_entry.divisor);
  }

  __device__ __forceinline__ auto load(const Unit<Element, kHalves, kMoved> &unit, int32_t r) const {
    const int32_t entry = packed() ? 0 : entry_of(r);
    return unit.load(entry, packed() ? static_cast<int32_t>(first_ + r) : row_in_entry(r, entry));
  }

  // Ends with the barrier behind which all threads may read them.
  __device__ __forceinline__ void find_destinations() {
    if (packed()) find_owners();
    const auto r = static_cast<int32_t>(threadIdx.x);
    if (r < num_rows_) {
      const int32_t b = packed() ? shared_.owners[r] : entry_of(r);
      Destination to = Destination::nowhere();
      if (b >= 0) {
        const int64_t t = packed() ? first_ + r - move_.side.span(b).start : row_in_entry(r, b);
        to = destination_of<kMoved>(args_, b, t);
      }
      shared_.destinations[r] = to;
    }
    __syncthreads();
  }

  // body(b, r, t): for the rows r of the block that are rows t of sequences, each thread looking at some of these. A
  // search would take fewer steps, but one wrong entry of cu_seqlens could lead it past sequences whose own entries are
  // right.
  template <class Body>
  __device__ __forceinline__ void for_each_owner(Body body) {
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < args_.batch; i += kAppendThreads) {
      const auto b = static_cast<int32_t>(i);
      const core::SeqSpan span = move_.side.span(b);
      const auto begin = static_cast<int32_t>(core::SeqSide::clamp(span.start - first_, 0, num_rows_));
      const auto end = static_cast<int32_t>(core::SeqSide::clamp(span.start + span.len - first_, 0, num_rows_));
#pragma unroll 1
      for (int32_t r = begin; r < end; ++r) body(b, r, first_ + r - span.start);
    }
  }

  __device__ __forceinline__ void find_owners() {
    if (threadIdx.x < kMostRowsPerBlock) shared_.owners[threadIdx.x] = -1;
    if (threadIdx.x == 0) shared_.more_owners = 0;
    __syncthreads();
    for_each_owner([&](int32_t b, int32_t r, int64_t) {
      if (atomicCAS(&shared_.owners[r], -1, b) != -1) atomicExch(&shared_.more_owners, 1);
    });
    __syncthreads();
  }

  // Sequences share rows only where cu_seqlens is wrong. New rows then go to all of them, so that those with right
  // entries get theirs; one thread moves all that the block has of a row. A row of q has one place, which is the
  // owner's.
  __device__ __forceinline__ void move_to_more_owners() {
    for_each_owner([&](int32_t b, int32_t r, int64_t t) {
      if (shared_.owners[r] == b) return;
      const Destination to = destination_of<kMoved>(args_, b, t);
      if (to.entry < 0) return;
      const auto behind =
          static_cast<int32_t>(core::SeqSide::clamp(move_.units, 0, first_unit_ + (1 << move_.threads_per_row_log2)));
#pragma unroll 1
      for (int32_t u = first_unit_; u < behind; ++u) {
        const Unit<Element, kHalves, kMoved> unit(args_, u);
        unit.store(to, load(unit, r));
      }
    });
  }

  const AppendArgs &args_;
  const RowMove &move_;
  AppendShared &shared_;
  const int32_t rows_at_once_;  // one of each thread
  int64_t first_;
  int32_t num_rows_;
  int32_t first_unit_;
};

// kHalves: how columns make pairs, with rotary embedding.
template <class Element, bool kHalves>
__global__ void __launch_bounds__(kAppendThreads, 4) append_kernel(const __grid_constant__ AppendArgs args) {
  ptx::launch_dependents();
  __shared__ AppendShared shared;
  auto block = static_cast<int32_t>(blockIdx.x);
  if (block < args.new_keys.blocks) {
    RowMover<Element, kHalves, Moved::kNewKeys>(args, block, shared).run();
    return;
  }
  block -= args.new_keys.blocks;
  if (block < args.new_values.blocks) {
    RowMover<Element, kHalves, Moved::kNewValues>(args, block, shared).run();
    return;
  }
  RowMover<Element, kHalves, Moved::kQueries>(args, block - args.new_values.blocks, shared).run();
}

}  // namespace flash3::device
