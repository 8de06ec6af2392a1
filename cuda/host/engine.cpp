#include "host/engine.h"

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "core/call_facts.h"
#include "core/kv_cache.h"
#include "core/tile_scheduler.h"
#include "host/append.h"
#include "host/kernels.h"
#include "host/threads.h"
#include "host/tile.h"

namespace flash3::host {
namespace {

// first_m_block of VarlenSchedule, and the multiplications of the call to the nearest power of ten or so.
struct Plan {
  std::vector<int32_t> first_m_block;
  double work = 0;
};

core::Status make_plan(const flash3_params &params, int32_t block_m, Plan *plan) {
  const core::SeqSide q = core::q_side(params);
  const core::KvCache k = core::KvCache::of(params);
  int64_t m_blocks = 0;
  plan->first_m_block.reserve(static_cast<size_t>(params.batch) + 1);
  plan->first_m_block.push_back(0);
  for (int32_t b = 0; b < params.batch; ++b) {
    const int64_t rows = int64_t{q.span(b).len} * (params.nheads / params.nheads_k);
    m_blocks += rows / block_m + (rows % block_m != 0);
    if (m_blocks * params.nheads_k > std::numeric_limits<int32_t>::max()) {
      return core::error(FLASH3_UNSUPPORTED, "batch is ", params.batch,
                         "; it must be so small that all heads have at most ", std::numeric_limits<int32_t>::max(),
                         " tiles of ", block_m, " query rows");
    }
    plan->first_m_block.push_back(static_cast<int32_t>(m_blocks));
    plan->work += double(rows) * k.span(b).len * params.nheads_k * (params.head_dim + params.head_dim_v);
  }
  return {};
}

// Takes tiles off the common counter until there are no more. Which thread computes a tile does not matter to it.
void work_through(const core::VarlenSchedule &schedule, int32_t num_tiles, std::atomic<int32_t> *next,
                  TileWorker *worker) {
  const auto count_leading = [](auto probe) {
    int32_t i = 0;
    while (i < 32 && probe(i)) ++i;
    return i;
  };
  // One head after the other, so that its K and V stay in the cache that the threads share.
  const auto sections_of = [](int32_t) { return core::Sections{1, 0, 1}; };
  for (;;) {
    const int32_t t = next->fetch_add(1, std::memory_order_relaxed);
    if (t >= num_tiles) return;
    worker->run(schedule.tile(t, count_leading, sections_of));
  }
}

}  // namespace

core::Status forward(const flash3_params &params) {
  const Kernels *kernels = nullptr;
  core::Status status = select_kernels(&kernels);
  if (!status.ok()) return status;
  Plan plan;
  status = make_plan(params, tile_rows(*kernels), &plan);
  if (!status.ok()) return status;
  if (params.k_new != nullptr) append_rows(params, *kernels);

  const core::VarlenSchedule schedule = {plan.first_m_block.data(), params.nheads_k, params.batch};
  const auto num_tiles = static_cast<int32_t>(schedule.num_tiles());
  if (num_tiles == 0) return {};
  const int32_t num_threads = threads_to_use(params.num_threads, plan.work, num_tiles);
  std::vector<std::unique_ptr<TileWorker>> workers;
  for (int32_t i = 0; i < num_threads; ++i) workers.push_back(std::make_unique<TileWorker>(params, *kernels));
  std::atomic<int32_t> next{0};
  on_threads(num_threads, [&](int32_t i) { work_through(schedule, num_tiles, &next, workers[i].get()); });
  return {};
}

}  // namespace flash3::host
