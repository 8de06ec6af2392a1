#include "host/append.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "core/dtype.h"
#include "core/kv_cache.h"
#include "host/rotary.h"
#include "host/threads.h"

namespace flash3::host {
namespace {

constexpr int64_t kChunk = 16;  // rows of one sequence that a thread takes at a time

// Chunks [first[b], first[b + 1]) are those of sequence b.
struct Chunks {
  std::vector<int64_t> first{0};
  int64_t rows = 0;

  int64_t count() const { return first.back(); }
};

Chunks make_chunks(const core::KvCache &cache, int32_t batch) {
  Chunks chunks;
  chunks.first.reserve(static_cast<size_t>(batch) + 1);
  for (int32_t b = 0; b < batch; ++b) {
    const int64_t rows = cache.span(b).appended;
    chunks.rows += rows;
    chunks.first.push_back(chunks.count() + (rows + kChunk - 1) / kChunk);
  }
  return chunks;
}

class Appender {
 public:
  Appender(const flash3_params &params, const Kernels &kernels)
      : params_(params),
        cache_(core::KvCache::of(params)),
        element_bytes_(core::element_bytes(params.dtype)),
        rotary_(params, kernels) {}

  void write(int32_t b, int64_t begin) {
    const core::KeySpan span = cache_.span(b);
    const core::SeqSpan added = cache_.appended.span(b);
    const int64_t batch = params_.cu_seqlens_k_new != nullptr ? 0 : b;
    for (int64_t t = begin; t < std::min<int64_t>(begin + kChunk, span.appended); ++t) {
      const core::RowPlace place = cache_.place(span, span.first_appended_row() + t);
      if (place.named) write_row(b, batch, added.start + t, t, place);
    }
  }

 private:
  // Row t of sequence b, which is row `row` of entry `batch` of k_new.
  void write_row(int32_t b, int64_t batch, int64_t row, int64_t t, const core::RowPlace &place) {
    const flash3_params &p = params_;
    for (int64_t h = 0; h < p.nheads_k; ++h) {
      const char *k_from =
          at(p.k_new, batch * p.k_new_batch_stride + row * p.k_new_row_stride + h * p.k_new_head_stride);
      char *k_to = at(p.k, place.entry * p.k_batch_stride + place.row * p.k_row_stride + h * p.k_head_stride);
      const int64_t turned = rotary_.on() ? p.rotary_dim : 0;
      if (turned > 0) rotary_.turn(k_from, rotary_.positions().of_new_row(b, t), k_to);
      std::memcpy(k_to + turned * element_bytes_, k_from + turned * element_bytes_,
                  (p.head_dim - turned) * element_bytes_);
      if (p.v_new == nullptr) continue;
      const char *v_from =
          at(p.v_new, batch * p.v_new_batch_stride + row * p.v_new_row_stride + h * p.v_new_head_stride);
      char *v_to = at(p.v, place.entry * p.v_batch_stride + place.row * p.v_row_stride + h * p.v_head_stride);
      std::memcpy(v_to, v_from, p.head_dim_v * element_bytes_);
    }
  }

  // k and v are const in flash3_params, as calls that append nothing only read them.
  char *at(const void *data, int64_t elements) const {
    return static_cast<char *>(const_cast<void *>(data)) + elements * element_bytes_;
  }

  const flash3_params &params_;
  const core::KvCache cache_;
  const int64_t element_bytes_;
  RotaryRows rotary_;
};

}  // namespace

void append_rows(const flash3_params &params, const Kernels &kernels) {
  const Chunks chunks = make_chunks(core::KvCache::of(params), params.batch);
  const double work = double(chunks.rows) * params.nheads_k * (params.head_dim + params.head_dim_v);
  const int32_t num_threads = threads_to_use(params.num_threads, work, chunks.count());
  std::vector<std::unique_ptr<Appender>> appenders;
  for (int32_t i = 0; i < num_threads; ++i) appenders.push_back(std::make_unique<Appender>(params, kernels));
  std::atomic<int64_t> next{0};
  on_threads(num_threads, [&](int32_t thread) {
    for (int64_t c = next.fetch_add(1); c < chunks.count(); c = next.fetch_add(1)) {
      const auto behind = std::upper_bound(chunks.first.begin(), chunks.first.end(), c);
      const auto b = static_cast<int32_t>(behind - chunks.first.begin() - 1);
      appenders[thread]->write(b, (c - chunks.first[b]) * kChunk);
    }
  });
}

}  // namespace flash3::host
