// New rows of keys and values, as the producers of the split-KV kernel meet them. Another kernel may write them, the
// append (append_kernel.cuh), and the producers have to wait for it (AwaitedRows). In a decoding step, with one query
// and one new row at most of every sequence, this kernel does the work of the append itself, which is a kernel less
// (WrittenRow): the thread block that computes the last key block of a tile is the only one that reads the tile's new
// row, and writes it before. Queries are turned in shared memory then.
#pragma once

#include <cstdint>

#include "core/kv_cache.h"
#include "core/split_cursor.h"
#include "device/fwd_args.h"
#include "device/packed_rows.cuh"
#include "device/ptx.cuh"
#include "device/rotary.cuh"
#include "device/split_args.h"
#include "device/split_side.cuh"

namespace flash3::device {

// The new rows of a piece that another kernel writes, which may still run: everything else is loaded without waiting
// for it. `awaits`: whether nobody has waited yet, as every wait takes most of a microsecond, also behind the first
// one.
template <class Traits>
class AwaitedRows {
 public:
  __device__ __forceinline__ AwaitedRows(const core::KeySpan &span, bool *awaits)
      : awaits_(awaits),
        first_(*awaits && span.appended > 0 ? max(span.len - span.appended, 0) / Traits::kBlockN : INT32_MAX) {}

  // Before block n is loaded.
  __device__ __forceinline__ void before(int32_t n) {
    if (n < first_) return;
    ptx::wait_for_previous_kernel();
    first_ = INT32_MAX;
    *awaits_ = false;
  }

 private:
  bool *const awaits_;
  int32_t first_;  // block with new rows
};

// Rotary embedding turns the first columns of a row, eight at a time: with halves, those of the first half take those
// that they make pairs with along. Whether there are such from `col` on.
__device__ __forceinline__ bool begins_turned(const NewRows &rows, int col) {
  return col < (rows.rotary.half > 0 ? rows.rotary.half : rows.rotary.columns);
}

// Turns them. cos, sin: of the columns from `col` on. right: with halves, what makes pairs with them.
template <class Element>
__device__ __forceinline__ void turn(const NewRows &rows, const Element *cos, const Element *sin, RowVector *left,
                                     RowVector *right) {
  if (rows.rotary.half > 0) {
    turn_halves(cos, sin, left, right);
  } else {
    turn_neighbours(cos, sin, left);
  }
}

// Of column `col`, in a row of the tables of cosines and sines.
__device__ __forceinline__ int angle_of(const NewRows &rows, int col) { return rows.rotary.half > 0 ? col : col / 2; }

// The new row of a sequence in K or V, if it is in the key blocks of a piece. By the warp that loads them, whose lanes
// have eight columns each: it asks for the row when the piece begins, and writes it some blocks later.
template <class Traits>
class WrittenRow {
  using Element = typename Traits::Element;
  // Otherwise when it writes it: where producers have left most of their registers to the consumers.
  static constexpr bool kAsksEarly = Traits::kByWarps;

 public:
  // half: of the rows of a block, which the warp loads if they are copied one by one.
  __device__ __forceinline__ WrittenRow(const SplitArgs &args, const core::KvCache &cache,
                                        const core::SplitPiece &piece, const core::KeySpan &span, SplitSide side,
                                        int half, int blocks_on_their_way)
      : args_(args), cache_(cache), span_(span), kv_head_(piece.kv_head), side_(side) {
    const int32_t block = (span.len - 1) / Traits::kBlockN;
    const bool loaded =
        args.key_loads == KeyLoads::kTma || (span.len - 1) % Traits::kBlockN / Traits::kCopyRows == half;
    if (span.appended == 0 || !loaded || block < piece.n_begin || block >= piece.n_end) return;
    if ((block - piece.n_begin) % piece.n_step != 0) return;
    if constexpr (kAsksEarly) {
      write_at_ = min(block, piece.n_begin + blocks_on_their_way * piece.n_step);
      ask(piece.batch);
    } else {
      write_at_ = block;
      batch_ = piece.batch;
    }
  }

  // Before block n is loaded.
  __device__ __forceinline__ void before(int32_t n) {
    if (n < write_at_) return;
    write_at_ = INT32_MAX;
    if constexpr (!kAsksEarly) ask(batch_);
    write();
    if (args_.key_loads == KeyLoads::kTma) ptx::fence_proxy_async();
    __syncwarp();
  }

 private:
  __device__ __forceinline__ bool is_turned() const { return side_ == kOfK && col_ < args_.new_rows.rotary.columns; }

  __device__ __forceinline__ void ask(int32_t b) {
    const NewRows &rows = args_.new_rows;
    const bool exists = col_ < head_dim_of(args_, side_);
    moves_ = exists && (!is_turned() || begins_turned(rows, col_));
    if (cache_.page_table != nullptr) page_ = cache_.page_id(span_, span_.first_appended_row());
    if (!moves_) return;
    const auto *const from = row_of<Element>(side_ == kOfK ? rows.k : rows.v, b, 0, kv_head_) + col_;
    left_ = *reinterpret_cast<const RowVector *>(from);
    if (!is_turned()) return;
    const int64_t position = rows.rotary.positions.of_new_row(b, 0);
    const int at = angle_of(rows, col_);
    const auto *const cos = static_cast<const Element *>(rows.rotary.cos) + position * rows.rotary.cos_row_stride + at;
    const auto *const sin = static_cast<const Element *>(rows.rotary.sin) + position * rows.rotary.sin_row_stride + at;
    if (rows.rotary.half > 0) {
      right_ = *reinterpret_cast<const RowVector *>(from + rows.rotary.half);
      cos_ = *reinterpret_cast<const RowVector *>(cos);
      sin_ = *reinterpret_cast<const RowVector *>(sin);
    } else {  // four of each
      const auto c = *reinterpret_cast<const HalfRowVector *>(cos), s = *reinterpret_cast<const HalfRowVector *>(sin);
      cos_ = {{c.words[0], c.words[1], 0, 0}};
      sin_ = {{s.words[0], s.words[1], 0, 0}};
    }
  }

  __device__ __forceinline__ void write() {
    const NewRows &rows = args_.new_rows;
    const core::RowPlace place = cache_.place(span_, span_.first_appended_row(), page_);
    if (!moves_ || !place.named) return;
    // k and v are const in flash3_params, as calls that append nothing only read them.
    const TensorRows &tensor = tensor_of(args_, side_);
    auto *const to = const_cast<Element *>(row_of<Element>(tensor, place.entry, place.row, kv_head_)) + col_;
    if (is_turned()) {
      turn(rows, reinterpret_cast<const Element *>(&cos_), reinterpret_cast<const Element *>(&sin_), &left_, &right_);
      if (rows.rotary.half > 0) *reinterpret_cast<RowVector *>(to + rows.rotary.half) = right_;
    }
    *reinterpret_cast<RowVector *>(to) = left_;
  }

  const SplitArgs &args_;
  const core::KvCache &cache_;
  const core::KeySpan &span_;
  const int32_t kv_head_;
  const SplitSide side_;
  const int col_ = threadIdx.x % 32 * 8;
  int32_t write_at_ = INT32_MAX;  // the block before which the row is written
  bool moves_ = false;            // the lane has something to write
  int32_t page_ = 0;
  int32_t batch_ = 0;
  RowVector left_, right_, cos_, sin_;
};

// Asks for the cosines and sines that turn the query of sequence b. By all consumers.
template <class Traits>
__device__ __forceinline__ void load_angles(const SplitArgs &args, typename Traits::SharedStorage &smem, int32_t b,
                                            int buffer) {
  using Element = typename Traits::Element;
  const NewRows &rows = args.new_rows;
  const int table = threadIdx.x / 32;  // the first warp has cosines, the second one sines
  const int first = threadIdx.x % 32 * 8;
  if (table > 1 || 2 * first >= rows.rotary.columns) return;
  const auto *const from = static_cast<const Element *>(table == 0 ? rows.rotary.cos : rows.rotary.sin);
  const int64_t stride = table == 0 ? rows.rotary.cos_row_stride : rows.rotary.sin_row_stride;
  ptx::cp_async_16(ptx::shared_address(smem.angles[buffer][table] + first),
                   from + rows.rotary.positions.of_query_row(b, 0) * stride + first, 16);
}

// Turns the queries of a tile of so many rows, which have the position of their sequence. By all consumers. few: see
// PackedRows.
template <class Traits>
__device__ __forceinline__ void turn_queries(const SplitArgs &args, typename Traits::SharedStorage &smem,
                                             int32_t tile_rows, int buffer, bool few) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 8;
  const NewRows &rows = args.new_rows;
  const auto place = [&](int row, int col) {
    return reinterpret_cast<RowVector *>(
        smem.q[buffer] + Traits::template offset<Traits::kBlockM>(PackedRows::place(row, few), col) / 2);
  };
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < tile_rows * kChunks; i += Traits::kConsumerThreads) {
    const int row = i / kChunks;
    const int col = i % kChunks * 8;
    if (!begins_turned(rows, col)) continue;
    const Element *const cos = smem.angles[buffer][0] + angle_of(rows, col);
    const Element *const sin = smem.angles[buffer][1] + angle_of(rows, col);
    turn(rows, cos, sin, place(row, col), place(row, col + rows.rotary.half));
  }
}

}  // namespace flash3::device
