#include "host/threads.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#endif

namespace flash3::host {
namespace {

// Below this many multiplications, starting a thread costs more than it gains.
constexpr double kWorkPerThread = 1e6;

int32_t available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int32_t>(count) : 1;
}

}  // namespace

int32_t threads_to_use(int32_t wanted, double work, int64_t items) {
  const int32_t most = wanted > 0 ? wanted : available_cores();
  const double useful = std::min<double>(work / kWorkPerThread + 1, static_cast<double>(items));
  return std::max(1, static_cast<int32_t>(std::min<double>(most, useful)));
}

void on_threads(int32_t num_threads, const std::function<void(int32_t)> &work) {
  std::vector<std::thread> threads;
  threads.reserve(num_threads - 1);
  try {
    for (int32_t i = 1; i < num_threads; ++i) threads.emplace_back(work, i);
  } catch (const std::exception &) {
    // The system grants no more threads: those that run do all the work, with the same result.
  }
  work(0);
  for (std::thread &thread : threads) thread.join();
}

}  // namespace flash3::host
