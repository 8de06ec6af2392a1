// One tile of the output: the rows of one m_block of one KV head of one sequence, over all keys that they see.
//
// The query heads that share a KV head are packed: row r of a tile is query row r / group of head r % group, so that
// their K and V are converted once, and a single query row still fills a vector.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "core/block_range.h"
#include "core/kv_cache.h"
#include "core/mask.h"
#include "core/seqlen.h"
#include "core/tile_scheduler.h"
#include "flash3.h"
#include "host/kernels.h"
#include "host/rotary.h"

namespace flash3::host {

// Groups of query rows in a tile: what a block of K and V costs to convert is shared by that many groups.
inline constexpr int32_t kGroupsPerTile = 4;

inline int32_t tile_rows(const Kernels &kernels) { return kernels.group_rows * kGroupsPerTile; }

// The scratch of one thread, and what it does with a tile. Only the constructor allocates.
class TileWorker {
 public:
  TileWorker(const flash3_params &params, const Kernels &kernels);
  TileWorker(const TileWorker &) = delete;
  TileWorker &operator=(const TileWorker &) = delete;

  void run(const core::Tile &tile);

 private:
  struct FreeAligned {
    void operator()(void *p) const { ::operator delete(p, std::align_val_t{kBufferAlignment}); }
  };
  // One of k and v, for load_keys.
  struct KeyTensor {
    const void *data;
    int64_t batch_stride;
    int64_t row_stride;
    int64_t head_stride;
    int32_t columns;
  };
  struct alignas(kBufferAlignment) GroupState {
    float row_max[kMaxGroupRows];
    float row_sum[kMaxGroupRows];
    int32_t key_begin[kMaxGroupRows];
    int32_t key_end[kMaxGroupRows];
    int32_t diagonal[kMaxGroupRows];
    float alibi_slope[kMaxGroupRows];
    float *q;
    float *out;
    int64_t row_begin;  // packed
    int32_t width;      // of q, out and the arrays above, rows that do not exist included
    int32_t rows;       // that exist
    core::BlockRange blocks;
  };

  const char *element(const void *data, int64_t i) const {
    return static_cast<const char *>(data) + i * element_bytes_;
  }
  // Row i of the tile's sequence and a query head, in q or out.
  const char *query(const void *data, int64_t batch_stride, int64_t row_stride, int64_t head_stride, int64_t i,
                    int32_t head) const;
  // Query row and query head of a packed row.
  int64_t query_row(int64_t r) const { return r / heads_per_kv_head_; }
  int32_t query_head(int64_t r) const {
    return tile_.head * heads_per_kv_head_ + static_cast<int32_t>(r % heads_per_kv_head_);
  }
  Group view(GroupState &group) const;

  void load_group(GroupState &group, int64_t row_begin, int64_t row_end);
  void begin_row(GroupState &group, int32_t m);
  void load_query(int64_t i, int32_t head);
  bool load_keys(const KeyTensor &tensor, int32_t first_key, int32_t keys, float *dst) const;
  void visit_block(int32_t n_block);
  void take_out_special_values(int32_t keys);
  void add_special_values(GroupState &group, int32_t first_key);
  void store_group(const GroupState &group);

  const flash3_params &params_;
  const Kernels &kernels_;
  const core::SeqSide q_side_;
  const core::KvCache cache_;
  const int32_t heads_per_kv_head_;
  const int64_t element_bytes_;
  ScoreOptions options_;

  std::unique_ptr<float[], FreeAligned> memory_;
  GroupState groups_[kGroupsPerTile];
  float *k_;              // (kBlockN, head_dim)
  float *v_;              // (kBlockN, head_dim_v)
  float *finite_v_;       // v_ without the rows in special_keys_, which are 0 here
  float *probabilities_;  // (kBlockN, group_rows)
  float *row_;            // (head_dim): one query row
  std::vector<int32_t> special_keys_;
  RotaryRows rotary_;
  std::vector<char> turned_;  // one query row, with rotary embedding

  // Of the tile at hand.
  core::Tile tile_;
  core::Mask mask_;
  core::SeqSpan q_span_;
  core::KeySpan k_span_;
};

}  // namespace flash3::host
