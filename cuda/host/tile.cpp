#include "host/tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/call_facts.h"
#include "core/dtype.h"
#include "host/convert.h"
#include "host/store.h"

namespace flash3::host {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

TileWorker::TileWorker(const flash3_params &params, const Kernels &kernels)
    : params_(params),
      kernels_(kernels),
      q_side_(core::q_side(params)),
      cache_(core::KvCache::of(params)),
      heads_per_kv_head_(params.nheads / params.nheads_k),
      element_bytes_(core::element_bytes(params.dtype)),
      options_{params.head_dim, params.head_dim_v, params.softmax_scale, params.softcap,
               params.alibi_slopes != nullptr},
      rotary_(params, kernels),
      turned_(rotary_.on() ? params.head_dim * element_bytes_ : 0) {
  const int64_t rows = kernels.group_rows;
  const int64_t q_floats = rows * params.head_dim;
  const int64_t out_floats = rows * params.head_dim_v;
  const int64_t k_floats = int64_t{kBlockN} * params.head_dim;
  const int64_t v_floats = int64_t{kBlockN} * params.head_dim_v;
  // Every part is a multiple of 8 * 4 floats, hence of kBufferAlignment: head dims and kBlockN are multiples of 8, and
  // group_rows is one of 4.
  const int64_t floats =
      kGroupsPerTile * (q_floats + out_floats) + k_floats + 2 * v_floats + kBlockN * rows + params.head_dim;
  memory_.reset(static_cast<float *>(::operator new(floats * sizeof(float), std::align_val_t{kBufferAlignment})));
  float *next = memory_.get();
  const auto take = [&next](int64_t count) {
    float *part = next;
    next += count;
    return part;
  };
  for (GroupState &group : groups_) {
    group.q = take(q_floats);
    group.out = take(out_floats);
  }
  k_ = take(k_floats);
  v_ = take(v_floats);
  finite_v_ = take(v_floats);
  probabilities_ = take(kBlockN * rows);
  row_ = take(params.head_dim);
  // Rows of k_ behind the last key of a sequence enter products whose results are dropped; they only must be readable.
  std::fill_n(k_, k_floats, 0.0f);
  special_keys_.reserve(kBlockN);
}

const char *TileWorker::query(const void *data, int64_t batch_stride, int64_t row_stride, int64_t head_stride,
                              int64_t i, int32_t head) const {
  const int64_t batch_offset = params_.cu_seqlens_q != nullptr ? 0 : tile_.batch * batch_stride;
  return element(data, batch_offset + (q_span_.start + i) * row_stride + head * head_stride);
}

Group TileWorker::view(GroupState &group) const {
  return {group.width,     group.q,       group.out,      group.row_max,     group.row_sum,
          group.key_begin, group.key_end, group.diagonal, group.alibi_slope, probabilities_};
}

void TileWorker::run(const core::Tile &tile) {
  tile_ = tile;  // its head is a KV head
  q_span_ = q_side_.span(tile.batch);
  k_span_ = cache_.span(tile.batch);
  mask_ = {core::Window::make(params_.window_left, params_.window_right), q_span_.len, k_span_.len};

  const int64_t rows = int64_t{q_span_.len} * heads_per_kv_head_;
  const int64_t tile_begin = int64_t{tile.m_block} * tile_rows(kernels_);
  const auto group_row = [&](int32_t g) { return std::min(tile_begin + g * kernels_.group_rows, rows); };
  core::BlockRange blocks = {std::numeric_limits<int32_t>::max(), 0, 0, 0};
  for (int32_t g = 0; g < kGroupsPerTile; ++g) {
    load_group(groups_[g], group_row(g), group_row(g + 1));
    if (groups_[g].blocks.count() == 0) continue;
    blocks.begin = std::min(blocks.begin, groups_[g].blocks.begin);
    blocks.end = std::max(blocks.end, groups_[g].blocks.end);
  }
  for (int32_t n_block = blocks.begin; n_block < blocks.end; ++n_block) visit_block(n_block);
  for (const GroupState &group : groups_) store_group(group);
}

void TileWorker::load_group(GroupState &group, int64_t row_begin, int64_t row_end) {
  group.row_begin = row_begin;
  group.rows = static_cast<int32_t>(row_end - row_begin);
  group.width = group.rows <= kernels_.narrow_rows ? kernels_.narrow_rows : kernels_.group_rows;
  const int32_t width = group.width;
  group.blocks = {0, 0, 0, 0};
  if (group.rows == 0) return;
  group.blocks = core::block_range(mask_, static_cast<int32_t>(query_row(row_begin)),
                                   static_cast<int32_t>(query_row(row_end - 1) + 1), kBlockN);
  for (int32_t m = 0; m < width; ++m) begin_row(group, m);
  std::fill_n(group.out, int64_t{width} * params_.head_dim_v, 0.0f);
  std::fill_n(group.q, int64_t{width} * params_.head_dim, 0.0f);
  for (int32_t m = 0; m < group.rows; ++m) {
    load_query(query_row(row_begin + m), query_head(row_begin + m));
    for (int32_t d = 0; d < params_.head_dim; ++d) group.q[d * width + m] = row_[d];
  }
}

// One query row into row_.
void TileWorker::load_query(int64_t i, int32_t head) {
  const char *row = query(params_.q, params_.q_batch_stride, params_.q_row_stride, params_.q_head_stride, i, head);
  if (rotary_.on()) {
    std::memcpy(turned_.data(), row, turned_.size());
    rotary_.turn(row, rotary_.positions().of_query_row(tile_.batch, i), turned_.data());
    row = turned_.data();
  }
  kernels_.load_rows(params_.dtype, row, 0, 1, params_.head_dim, row_);
}

// What row m sees and starts from. A sink is a key that is always visible and has no value.
void TileWorker::begin_row(GroupState &group, int32_t m) {
  const bool exists = m < group.rows;
  const auto i = static_cast<int32_t>(query_row(group.row_begin + m));
  const int32_t head = exists ? query_head(group.row_begin + m) : 0;
  const float sink = exists && params_.sinks != nullptr ? params_.sinks[head] : -kInfinity;
  group.row_max[m] = sink;
  group.row_sum[m] = sink == -kInfinity ? 0.0f : 1.0f;
  group.key_begin[m] = exists ? mask_.key_begin(i) : 0;
  group.key_end[m] = exists ? mask_.key_end(i) : 0;
  group.diagonal[m] = exists ? static_cast<int32_t>(mask_.diagonal(i)) : 0;
  group.alibi_slope[m] =
      exists && options_.alibi ? params_.alibi_slopes[tile_.batch * params_.alibi_batch_stride + head] : 0.0f;
}

// Keys from first_key on as (keys, columns). Returns whether all of them are finite.
bool TileWorker::load_keys(const KeyTensor &tensor, int32_t first_key, int32_t keys, float *dst) const {
  bool finite = true;
  for (int64_t done = 0, run = 0; done < keys; done += run) {
    const int64_t row = k_span_.first_row + first_key + done;
    const core::RowPlace place = cache_.place(k_span_, row);
    run = cache_.run(row, keys - done);
    const char *from = element(tensor.data, place.entry * tensor.batch_stride + place.row * tensor.row_stride +
                                                tile_.head * tensor.head_stride);
    finite &= kernels_.load_rows(params_.dtype, from, tensor.row_stride, static_cast<int32_t>(run), tensor.columns,
                                 dst + done * tensor.columns);
  }
  return finite;
}

void TileWorker::visit_block(int32_t n_block) {
  const int32_t first_key = n_block * kBlockN;
  const int32_t keys = std::min(kBlockN, mask_.seqlen_k - first_key);
  const flash3_params &p = params_;
  const KeyTensor k{p.k, p.k_batch_stride, p.k_row_stride, p.k_head_stride, p.head_dim};
  KeyTensor v{p.v, p.v_batch_stride, p.v_row_stride, p.v_head_stride, p.head_dim_v};
  if (p.v == nullptr) {
    v = k;
    v.columns = p.head_dim_v;
  }
  load_keys(k, first_key, keys, k_);
  const bool finite = load_keys(v, first_key, keys, v_);
  special_keys_.clear();
  if (!finite) take_out_special_values(keys);
  for (GroupState &group : groups_) {
    if (n_block < group.blocks.begin || n_block >= group.blocks.end) continue;
    const bool masked = !group.blocks.is_full(n_block);
    const bool special = masked && !special_keys_.empty();
    kernels_.update(view(group), {k_, special ? finite_v_ : v_, first_key, keys, masked}, options_);
    if (special) add_special_values(group, first_key);
  }
}

// An invisible key has probability 0, and 0 * NaN or 0 * Inf would be NaN. So where a block is masked, rows of V with
// such values stay out of the matrix product and are added to the rows that see them.
void TileWorker::take_out_special_values(int32_t keys) {
  const int32_t columns = params_.head_dim_v;
  std::copy_n(v_, int64_t{keys} * columns, finite_v_);
  for (int32_t n = 0; n < keys; ++n) {
    float *values = finite_v_ + int64_t{n} * columns;
    if (std::all_of(values, values + columns, is_finite)) continue;
    std::fill_n(values, columns, 0.0f);
    special_keys_.push_back(n);
  }
}

void TileWorker::add_special_values(GroupState &group, int32_t first_key) {
  const int32_t width = group.width;
  for (const int32_t n : special_keys_) {
    for (int32_t m = 0; m < group.rows; ++m) {
      const int32_t key = first_key + n;
      if (key < group.key_begin[m] || key >= group.key_end[m]) continue;
      const float p = probabilities_[n * width + m];
      for (int32_t j = 0; j < params_.head_dim_v; ++j) group.out[j * width + m] += p * v_[n * params_.head_dim_v + j];
    }
  }
}

void TileWorker::store_group(const GroupState &group) {
  const bool packed = params_.cu_seqlens_q != nullptr;
  for (int32_t m = 0; m < group.rows; ++m) {
    const int64_t i = query_row(group.row_begin + m);
    const int32_t head = query_head(group.row_begin + m);
    const char *out =
        query(params_.out, params_.out_batch_stride, params_.out_row_stride, params_.out_head_stride, i, head);
    const float sum = group.row_sum[m];
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    store_scaled(params_.dtype, group.out + m, group.width, params_.head_dim_v, factor, const_cast<char *>(out));
    if (params_.lse == nullptr) continue;
    const int64_t batch_offset = packed ? q_span_.start : tile_.batch * params_.lse_batch_stride;
    params_.lse[batch_offset + head * params_.lse_head_stride + i] =
        sum == 0.0f ? -kInfinity : group.row_max[m] + std::log(sum);
  }
}

}  // namespace flash3::host
