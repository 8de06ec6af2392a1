// Like test_surface.cpp, for what concerns the split-KV kernel.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/call_facts.h"
#include "core/divisor.h"
#include "core/kv_cache.h"
#include "core/mask.h"
#include "core/split_config.h"
#include "core/split_cursor.h"
#include "core/split_entries.h"
#include "core/split_schedule.h"
#include "core/two_steps.h"
#include "core/workspace.h"
#include "flash3.h"

namespace {

using namespace flash3::core;  // this file is nothing but a window onto it

SplitSchedule split_schedule(const flash3_params &p, int32_t block_n, int32_t num_lines, int32_t num_parts) {
  SplitSchedule schedule = {q_side(p),
                            KvCache::of(p),
                            Window::make(p.window_left, p.window_right),
                            Divisor::make(p.nheads / p.nheads_k),
                            p.nheads_k,
                            p.batch,
                            SplitSchedule::kBlockM * blocks_of_tile(p),
                            block_n,
                            p.num_splits,
                            num_lines,
                            p.nheads_k / num_lines,
                            num_parts / num_lines,
                            has_one_tile(p)};
  if (is_packed_decoding(p)) pack_few(p, &schedule);
  return schedule;
}

// The pieces of all parts of a schedule; see flash3_test_split_pieces.
int64_t put_pieces(const SplitSchedule &schedule, const SplitParts &parts, int64_t capacity, int64_t *pieces) {
  int64_t count = 0;
  const bool packed = schedule.packs_few;  // where parts without places may have surplus queries
  for (int32_t part = 0; part < (packed ? schedule.parts_of_line : parts.parts) * schedule.num_lines; ++part) {
    const SplitPartId id = {part % schedule.num_lines, part / schedule.num_lines};
    const int32_t first = parts.begin(id.index);
    int32_t b = 0;
    int32_t begin = 0;
    const bool exists = first < parts.begin(id.index + 1);
    for (; exists && schedule.behind(begin, schedule.sequence_cost(b)) <= first; ++b) {
      begin += schedule.sequence_cost(b);
    }
    const SplitTile tile = exists ? SplitTile::find(schedule, id.line, first, b, begin) : SplitTile{};
    SplitCursor cursor{schedule, first, parts.begin(id.index + 1), tile};
    if (packed) cursor.surplus.next = part;
    for (; !cursor.done() || cursor.take_surplus(); cursor.advance(), ++count) {
      if (count >= capacity) continue;
      const SplitPiece x = cursor.piece();
      const SplitEntries entries{schedule};
      SplitEntry e = {};
      if (schedule.balanced() && x.begin == first && cursor.on_line()) e = entries.of_part(x, parts, id);
      // What the merging kernel finds for itself.
      if (schedule.even) {
        e = x.first && cursor.on_line() && !schedule.nothing_to_merge() ? entries.of_even_tile(entries.place_of(x))
                                                                        : SplitEntry{};
      }
      if (schedule.num_splits > 1 && x.first) e = entries.of_tile(x.batch, x.kv_head, x.m_block);
      const int64_t values[] = {part,
                                x.batch,
                                x.kv_head,
                                x.m_block,
                                x.n_begin,
                                x.n_end,
                                x.n_step,
                                x.whole,
                                schedule.number(x, id),
                                x.first_query,
                                x.lengths.seqlen_q,
                                x.lengths.seqlen_k,
                                e.rows,
                                e.count,
                                e.first_piece,
                                e.next_piece,
                                e.step};
      std::memcpy(pieces + 17 * count, values, sizeof(values));
    }
  }
  return count;
}

}  // namespace

extern "C" {

// Whether the split-KV kernel computes the call.
FLASH3_API int32_t flash3_test_takes_split_kernel(const flash3_params *params) { return takes_split_kernel(*params); }

// pieces: whether tiles are other ones than the rows of a head with all keys, pieces of a tile, query heads of a tile.
FLASH3_API void flash3_test_pieces(const flash3_params *params, int32_t *pieces) {
  const Route route = route_of(*params);
  pieces[0] = route.in_pieces();
  pieces[1] = route.pieces.count;
  pieces[2] = route.pieces.pack;
}

FLASH3_API int32_t flash3_test_is_plain_decoding(const flash3_params *params) { return is_plain_decoding(*params); }

// Whether a call is computed as two; bytes: of the workspace of either, and of all.
FLASH3_API int32_t flash3_test_two_steps(const flash3_params *params, uint64_t *bytes) {
  if (!takes_two_steps(*params)) return 0;
  const TwoSteps steps = TwoSteps::of(*params);
  bytes[0] = workspace_layout(steps.singles).bytes;
  bytes[1] = workspace_layout(steps.others).bytes;
  bytes[2] = steps.bytes;
  return 1;
}

// Whether a call of plain decoding writes its new rows itself.
FLASH3_API int32_t flash3_test_appends_itself(const flash3_params *params) { return appends_itself(*params); }

FLASH3_API int64_t flash3_test_most_tiles(const flash3_params *params) { return SplitBounds::of(*params).most_tiles; }

// Places on a line. Lengths come from the params' own arrays, which are host memory here.
FLASH3_API int32_t flash3_test_split_places(const flash3_params *params, int32_t block_n, int32_t num_lines) {
  const SplitSchedule schedule = split_schedule(*params, block_n, num_lines, num_lines);
  int32_t sum = 0;
  for (int32_t b = 0; b < params->batch; ++b) sum = schedule.behind(sum, schedule.sequence_cost(b));
  return sum;
}

// Returns the number of pieces of all parts, of which up to `capacity` are written, seventeen numbers each: part,
// batch, kv_head, m_block, n_begin, n_end, n_step, whole, its number among the partial results, the first query of the
// tile's rows, queries and keys as the tile has them, and of the entry of its tile that begins with it or, of a
// balanced schedule, that it is to write, rows (0: nothing to merge), count, first_piece, next_piece, step.
FLASH3_API int64_t flash3_test_split_pieces(const flash3_params *params, int32_t block_n, int32_t num_lines,
                                            int32_t num_parts, int64_t capacity, int64_t *pieces) {
  const SplitSchedule schedule = split_schedule(*params, block_n, num_lines, num_parts);
  const SplitParts parts = schedule.parts(flash3_test_split_places(params, block_n, num_lines));
  return put_pieces(schedule, parts, capacity, pieces);
}

// The same of plain decoding, where tiles may be cut alike, or a multiprocessor have one thread block with something to
// do. cluster: how many thread blocks merge, by themselves where it is more than one. cuts: into how many pieces tiles
// are cut; 0: not alike.
FLASH3_API int64_t flash3_test_plain_pieces(const flash3_params *params, int32_t block_n, int32_t num_lines,
                                            int32_t num_parts, int32_t blocks_per_sm, int32_t cluster, int64_t capacity,
                                            int64_t *pieces, int32_t *cuts) {
  SplitSchedule schedule = split_schedule(*params, block_n, num_lines, num_parts);
  schedule.allow_even_cuts();
  schedule.allow_lone_blocks(blocks_per_sm, SplitBounds::of(*params).tile_rows);
  if (cluster > 2) {
    schedule.cut_for_clusters(cluster);
  } else if (cluster == 2 && may_merge_in_pairs(*params, schedule)) {
    allow_pairs(*params, num_parts / blocks_per_sm, &schedule);
  }
  const int32_t total = flash3_test_split_places(params, block_n, num_lines);
  int32_t largest = SplitSchedule::kTileCost;
  for (int32_t b = 0; b < params->batch; ++b) {
    largest = std::max(largest, schedule.head_cost(schedule.lengths(b)));
  }
  const SplitParts parts = schedule.plain_parts(total, largest);
  *cuts = schedule.even ? static_cast<int32_t>(schedule.cuts.divisor) : 0;
  return put_pieces(schedule, parts, capacity, pieces);
}

// Whether clusters of so many thread blocks, one for each tile, suit the call.
FLASH3_API int32_t flash3_test_suits_clusters(const flash3_params *params, int32_t block_n, int32_t num_lines,
                                              int32_t blocks, int32_t multiprocessors) {
  SplitSchedule schedule = split_schedule(*params, block_n, num_lines, multiprocessors);
  schedule.allow_even_cuts();
  return suits_clusters(*params, schedule, params->head_dim, blocks, multiprocessors);
}

// The first key block of a part if tiles are cut alike, as it is known before the lengths are: batch, kv_head, n.
// Returns 0 if the part would have none.
FLASH3_API int32_t flash3_test_first_even_block(const flash3_params *params, int32_t block_n, int32_t num_lines,
                                                int32_t num_parts, int32_t part, int32_t *block) {
  SplitSchedule schedule = split_schedule(*params, block_n, num_lines, num_parts);
  schedule.allow_even_cuts();
  return schedule.first_even_block({part % num_lines, part / num_lines}, block, block + 1, block + 2);
}

}  // extern "C"
