#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "host/engine.h"
#include "host/store.h"
#include "host/threads.h"

namespace flash3::host {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 64;  // results that a thread takes at a time

// Of one row and head, whose first partial results lie at out_partial and lse_partial. sum: (head_dim), scratch.
float combine_row(const flash3_combine_params &p, const float *out_partial, const float *lse_partial, float *sum,
                  void *out) {
  std::fill_n(sum, p.head_dim, 0.0f);
  float top = -kInfinity;
  for (int64_t s = 0; s < p.num_splits; ++s) {
    const float lse = lse_partial[s * p.lse_partial_split_stride];
    if (!(lse <= top)) top = lse;  // NaN too, and then it stays: nothing is at least NaN
    if (std::isnan(top)) break;
  }
  float total = 0.0f;
  for (int64_t s = 0; s < p.num_splits; ++s) {
    const float lse = lse_partial[s * p.lse_partial_split_stride];
    if (lse == -kInfinity) continue;
    const float weight = std::exp(lse - top);
    const float *partial = out_partial + s * p.out_partial_split_stride;
    for (int32_t j = 0; j < p.head_dim; ++j) sum[j] += weight * partial[j];
    total += weight;
  }
  store_scaled(p.dtype, sum, 1, p.head_dim, total == 0.0f ? 0.0f : 1.0f / total, out);
  return total == 0.0f ? -kInfinity : top + std::log(total);
}

}  // namespace

core::Status combine(const flash3_combine_params &p) {
  const int64_t results = int64_t{p.batch} * p.seqlen * p.nheads;
  const int64_t out_bytes = core::element_bytes(p.dtype);
  const auto run = [&](int64_t result, float *sum) {
    const int64_t h = result % p.nheads;
    const int64_t row = result / p.nheads % p.seqlen;
    const int64_t b = result / p.nheads / p.seqlen;
    const auto offset = [=](int64_t batch_stride, int64_t row_stride, int64_t head_stride) {
      return b * batch_stride + row * row_stride + h * head_stride;
    };
    const float lse = combine_row(
        p, p.out_partial + offset(p.out_partial_batch_stride, p.out_partial_row_stride, p.out_partial_head_stride),
        p.lse_partial + offset(p.lse_partial_batch_stride, p.lse_partial_row_stride, p.lse_partial_head_stride), sum,
        static_cast<char *>(p.out) + offset(p.out_batch_stride, p.out_row_stride, p.out_head_stride) * out_bytes);
    if (p.lse != nullptr) p.lse[offset(p.lse_batch_stride, p.lse_row_stride, p.lse_head_stride)] = lse;
  };
  const double work = double(results) * p.num_splits * p.head_dim;
  const int32_t num_threads = threads_to_use(p.num_threads, work, (results + kChunk - 1) / kChunk);
  std::vector<std::vector<float>> sums(num_threads, std::vector<float>(p.head_dim));
  std::atomic<int64_t> next{0};
  on_threads(num_threads, [&](int32_t thread) {
    for (int64_t i = next.fetch_add(kChunk); i < results; i = next.fetch_add(kChunk)) {
      for (int64_t r = i; r < std::min(i + kChunk, results); ++r) run(r, sums[thread].data());
    }
  });
  return {};
}

}  // namespace flash3::host
