// What the append kernel receives: which rows are moved where, and how they are turned on the way.
#pragma once

#include <cstdint>

#include "core/divisor.h"
#include "core/kv_cache.h"
#include "core/rotary.h"
#include "core/seqlen.h"
#include "device/fwd_args.h"

namespace flash3::device {

inline constexpr int kAppendThreads = 256;
inline constexpr int kMostRowsPerThread = 4;       // whose loads are in flight at the same time
inline constexpr int kLeastThreadsPerRowLog2 = 4;  // bounds the rows of a block, for shared memory
inline constexpr int kMostRowsPerBlock = (kAppendThreads >> kLeastThreadsPerRowLog2) * kMostRowsPerThread;

enum class Moved { kNewKeys, kNewValues, kQueries };

// Rows of k_new or v_new on their way into the cache, or of q into a tensor of its own. The heads of a row are cut into
// units of one thread each: a vector of 8 columns, or two of them that are turned with each other.
struct RowMove {
  TensorRows from, to;
  core::SeqSide side;           // of `from`
  int32_t rows;                 // of all batch entries, or of the packed tensor
  core::Divisor rows_of_entry;  // dense
  int64_t units;                // of a row
  core::Divisor units_of_head;
  int32_t rotated_units;         // of a head: the first ones
  int32_t threads_per_row_log2;  // of one block
  core::Divisor blocks_of_row;   // each has other units; blocks of the same rows follow each other
  int32_t blocks;                // 0: no such rows
};

struct AppendArgs {
  RowMove new_keys, new_values, queries;
  core::KvCache cache;
  core::Rotary rotary;
  int32_t batch;
  int32_t rows_per_thread;  // at most kMostRowsPerThread
};

}  // namespace flash3::device
