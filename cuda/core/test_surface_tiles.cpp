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

// share: whole units, first tile left over, number of tiles.
FLASH3_API void flash3_test_unit_share(uint32_t tiles, uint32_t tiles_of_unit, uint32_t block, uint32_t blocks,
                                       int32_t in_step, uint32_t *share) {
  const UnitSchedule schedule = UnitSchedule::make(tiles, tiles_of_unit, blocks, in_step != 0);
  share[0] = schedule.rounds;
  share[1] = schedule.left_over(block);
  share[2] = schedule.count(block);
}

// The first config of the class that holds the head dims, -1 for none.
FLASH3_API int32_t flash3_test_tile_class(int32_t head_dim, int32_t head_dim_v) {
  const TileConfig *found = tile_config(head_dim, head_dim_v);
  return found == nullptr ? -1 : static_cast<int32_t>(found - kTileConfigs);
}

// config: head_dim, head_dim_v, block_m, block_n, stages, tile_clocks, block_clocks, most_rows, is_short, pairs,
// most_keys. Returns 0 where there is no such index.
FLASH3_API int32_t flash3_test_tile_config(int32_t index, int32_t *config) {
  if (index < 0 || index >= kNumTileConfigs) return 0;
  const TileConfig &c = kTileConfigs[index];
  const int32_t values[] = {c.head_dim,     c.head_dim_v, c.block_m,    c.block_n, c.stages,   c.tile_clocks,
                            c.block_clocks, c.most_rows,  c.is_short(), c.pairs,   c.most_keys};
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

// Of the class of the config `member`. vary: whether the lengths are means, of q and of k. columns: heads of all
// sequences. packed: whether q is. On 132 multiprocessors.
FLASH3_API int32_t flash3_test_cheapest_config(int32_t member, int64_t left, int64_t right, int32_t seqlen_q,
                                               int32_t seqlen_k, int32_t vary, int64_t longest_q, int64_t columns,
                                               int32_t packed) {
  const Workload work = {make_mask(left, right, seqlen_q, seqlen_k),
                         vary != 0,
                         vary != 0,
                         longest_q,
                         columns,
                         132,
                         packed != 0,
                         vary != 0 || packed != 0};
  return cheapest_config(kTileConfigs[member], work);
}

}  // extern "C"
