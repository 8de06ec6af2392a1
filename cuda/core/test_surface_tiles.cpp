// The choice of tile shapes behind C functions, for tests/core, as in test_surface.cpp.
#include <cstdint>
#include <cstring>

#include "core/mask.h"
#include "core/tile_config.h"
#include "core/tile_scheduler.h"
#include "flash3.h"

namespace {

using namespace flash3::core;  // this file is nothing but a window onto it

Mask make_mask(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k) {
  return {Window::make(left, right), seqlen_q, seqlen_k};
}

}  // namespace

extern "C" {

// What a block goes on with when it has done so many tiles. run: unit, first tile, tiles. Returns how many tiles the
// block has in all; run is set where those are more.
FLASH3_API uint32_t flash3_test_unit_run(uint32_t tiles, uint32_t tiles_of_unit, uint32_t block, uint32_t blocks,
                                         int32_t in_step, uint32_t done, uint32_t *run) {
  const UnitSchedule schedule = UnitSchedule::make(tiles, tiles_of_unit, blocks, in_step != 0);
  const uint32_t count = schedule.count(block);
  if (done < count) {
    const UnitSchedule::Run next = schedule.run(block, done);
    run[0] = next.unit;
    run[1] = next.first;
    run[2] = next.count;
  }
  return count;
}

// units: how many, query heads of each, how many of a sequence.
FLASH3_API void flash3_test_packed_units(int32_t batch, int32_t nheads, int32_t group, int64_t blocks,
                                         uint32_t *units) {
  const PackedUnits made = PackedUnits::make(batch, nheads, group, blocks);
  units[0] = made.count;
  units[1] = static_cast<uint32_t>(made.heads);
  units[2] = made.of_sequence.divisor;
}

FLASH3_API int64_t flash3_test_keys_in_use(int64_t left, int64_t right, int64_t seqlen_k, int32_t block_m) {
  return keys_in_use(Window::make(left, right), seqlen_k, block_m);
}

// The first config of the class that holds the head dims, -1 for none.
FLASH3_API int32_t flash3_test_tile_class(int32_t head_dim, int32_t head_dim_v) {
  const TileConfig *found = tile_config(head_dim, head_dim_v);
  return found == nullptr ? -1 : static_cast<int32_t>(found - kTileConfigs);
}

// config: head_dim, head_dim_v, block_m, block_n, stages, tile_clocks, block_clocks, most_rows, is_short, pairs,
// most_keys, most_hidden, takes_modified_scores_directly, has_capped_kernel. Returns 0 where there is no such index.
FLASH3_API int32_t flash3_test_tile_config(int32_t index, int32_t *config) {
  if (index < 0 || index >= kNumTileConfigs) return 0;
  const TileConfig &c = kTileConfigs[index];
  const int32_t values[] = {c.head_dim,
                            c.head_dim_v,
                            c.block_m,
                            c.block_n,
                            c.stages,
                            c.tile_clocks,
                            c.block_clocks,
                            c.most_rows,
                            c.is_short(),
                            c.pairs,
                            c.most_keys,
                            c.most_hidden(),
                            c.takes_modified_scores_directly(),
                            c.has_capped_kernel()};
  std::memcpy(config, values, sizeof(values));
  return 1;
}

FLASH3_API int32_t flash3_test_takes_pairs(int32_t index, int64_t left, int64_t right, int64_t rows) {
  return takes_pairs(kTileConfigs[index], Window::make(left, right), rows);
}

FLASH3_API int64_t flash3_test_estimated_clocks(int32_t index, int64_t left, int64_t right, int32_t seqlen_q,
                                                int32_t seqlen_k) {
  return estimated_clocks(kTileConfigs[index], make_mask(left, right, seqlen_q, seqlen_k));
}

// Of the class of the config `member`. vary: whether the lengths are means, of q and of k, and `longest` the longest
// ones. columns: query heads of all sequences, `group` to a KV head. packed: whether q is. modifies: whether there is a
// softcap, or ALiBi.
// On 132 multiprocessors.
FLASH3_API int32_t flash3_test_cheapest_config(int32_t member, int64_t left, int64_t right, int32_t seqlen_q,
                                               int32_t seqlen_k, int32_t vary, const int64_t *longest,
                                               int64_t sequences, int64_t columns, int32_t group, int32_t packed,
                                               int32_t modifies) {
  const Workload work = {make_mask(left, right, seqlen_q, seqlen_k),
                         vary != 0,
                         vary != 0,
                         longest[0],
                         longest[1],
                         sequences,
                         columns,
                         columns / group,
                         132,
                         packed != 0,
                         vary != 0 || packed != 0,
                         modifies != 0};
  return cheapest_config(kTileConfigs[member], work);
}

}  // extern "C"
