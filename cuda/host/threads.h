// The threads of one call.
#pragma once

#include <cstdint>
#include <functional>

namespace flash3::host {

// How many threads to use where `wanted` is num_threads of the call, `work` counts multiplications or as costly steps,
// and there are `items` that one thread each can take.
int32_t threads_to_use(int32_t wanted, double work, int64_t items);

// Runs work(0) on this thread and work(1) ... work(num_threads - 1) on others, and waits for all of them. Where the
// system grants fewer threads, some of these calls are left out: work must take what there is to do off a common list.
// It must not throw.
void on_threads(int32_t num_threads, const std::function<void(int32_t)> &work);

}  // namespace flash3::host
