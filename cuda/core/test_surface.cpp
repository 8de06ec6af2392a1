// The integer logic behind C functions, for tests/core. Built into libflash3_core only, never into libflash3.
#include <cstdint>
#include <cstring>

#include "core/architecture.h"
#include "core/block_range.h"
#include "core/kv_cache.h"
#include "core/mask.h"
#include "core/monic_softcap.h"
#include "core/page_walk.h"
#include "core/rotary.h"
#include "core/seqlen.h"
#include "core/softcap.h"
#include "core/tile_config.h"
#include "core/tile_scheduler.h"
#include "core/validate.h"
#include "core/workspace.h"
#include "flash3.h"

namespace {

using namespace flash3::core;  // this file is nothing but a window onto it

Mask make_mask(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k) {
  return {Window::make(left, right), seqlen_q, seqlen_k};
}

struct CountLeading {
  template <class Probe>
  int32_t operator()(Probe probe) const {
    int32_t lanes = 0;
    while (lanes < 32 && probe(lanes)) ++lanes;
    return lanes;
  }
};

void put(const Tile &tile, int32_t *out) {
  out[0] = tile.m_block;
  out[1] = tile.head;
  out[2] = tile.batch;
}

int32_t put(const Status &status, char *message, int32_t capacity) {
  std::strncpy(message, status.message.c_str(), capacity - 1);
  message[capacity - 1] = '\0';
  return status.code;
}

template <int kBlockN>
void put_walk(int32_t page_size, int32_t first_row, uint32_t first_key, int32_t blocks, int32_t *places) {
  KvCache cache = {};
  cache.page_size = page_size;
  cache.page_divisor = Divisor::make(page_size);
  const PageStep step = PageStep::make(kBlockN, page_size);
  PageWalk<kBlockN> walk(cache, step, first_row, first_key);
  for (int32_t i = 0; i < blocks; ++i, walk.back(cache, step)) {
    places[3 * i] = walk.key;
    places[3 * i + 1] = walk.number;
    places[3 * i + 2] = walk.row;
  }
}

}  // namespace

extern "C" {

// keys: (seqlen_q, 2): key_begin and key_end of every row.
FLASH3_API void flash3_test_mask_keys(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k, int32_t *keys) {
  const Mask mask = make_mask(left, right, seqlen_q, seqlen_k);
  for (int32_t i = 0; i < seqlen_q; ++i) {
    keys[2 * i] = mask.key_begin(i);
    keys[2 * i + 1] = mask.key_end(i);
  }
}

FLASH3_API int32_t flash3_test_mask_visible(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k, int64_t i,
                                            int64_t j) {
  return make_mask(left, right, seqlen_q, seqlen_k).visible(i, j);
}

// keys: begin, end
FLASH3_API void flash3_test_block_mask_keys(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k,
                                            int64_t first_row, int64_t first_key, int32_t row, int32_t *keys) {
  const BlockMask block = BlockMask::make(make_mask(left, right, seqlen_q, seqlen_k), first_row, first_key);
  keys[0] = block.key_begin(row);
  keys[1] = block.key_end(row);
}

// range: begin, end, full_begin, full_end
FLASH3_API void flash3_test_block_range(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k,
                                        int32_t row_begin, int32_t row_end, int32_t block_n, int32_t *range) {
  const BlockRange r = block_range(make_mask(left, right, seqlen_q, seqlen_k), row_begin, row_end, block_n);
  range[0] = r.begin;
  range[1] = r.end;
  range[2] = r.full_begin;
  range[3] = r.full_end;
}

// The same of block n of some of a tile's blocks, [begin, end), and of a row counted from the tile's first one.
FLASH3_API void flash3_test_tile_mask_keys(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k,
                                           int32_t first_row, int32_t begin, int32_t end, int32_t block_n, int32_t n,
                                           int32_t row, int32_t *keys) {
  const BlockRange blocks = {begin, end, begin, begin};
  const TileMask mask = TileMask::make(make_mask(left, right, seqlen_q, seqlen_k), first_row, blocks, block_n);
  const BlockMask block = mask.of_block(n, row / 16 * 16, blocks, block_n);
  keys[0] = block.key_begin(row % 16);
  keys[1] = block.key_end(row % 16);
}

// What rows [row, row + rows) of the tile of rows [row_begin, row_end) see of its blocks. seen: how many at the end
// none of them sees, and behind which one they need a mask.
FLASH3_API void flash3_test_rows_of_tile(int64_t left, int64_t right, int32_t seqlen_q, int32_t seqlen_k,
                                         int32_t row_begin, int32_t row_end, int32_t block_n, int32_t row, int32_t rows,
                                         int32_t most, int32_t *seen) {
  const Mask mask = make_mask(left, right, seqlen_q, seqlen_k);
  const BlockRange all = block_range(mask, row_begin, row_end, block_n);
  const BlockMask edges = TileMask::make(mask, row_begin, all, block_n).edges;
  seen[0] = hidden_blocks(all, edges.key_end(row + rows - 1), block_n, most);
  seen[1] = full_end_of_rows(all, edges.key_end(row), block_n);
}

// range: begin, end, full_begin, full_end, of all blocks before and of the piece after.
FLASH3_API void flash3_test_piece_of(int32_t piece, int32_t most, int32_t *range) {
  const BlockRange r = piece_of({range[0], range[1], range[2], range[3]}, piece, most);
  range[0] = r.begin;
  range[1] = r.end;
  range[2] = r.full_begin;
  range[3] = r.full_end;
}

// start and len of sequence b
FLASH3_API void flash3_test_seq_span(const int32_t *cu_seqlens, const int32_t *seqused, int64_t rows, int32_t b,
                                     int64_t *start, int32_t *len) {
  const SeqSpan span = SeqSide{cu_seqlens, seqused, rows}.span(b);
  *start = span.start;
  *len = span.len;
}

// span: entry, named, first_row, len, appended
FLASH3_API void flash3_test_key_span(const flash3_params *params, int32_t b, int64_t *span) {
  const KeySpan s = KvCache::of(*params).span(b);
  const int64_t values[] = {s.entry, s.named, s.first_row, s.len, s.appended};
  for (int i = 0; i < 5; ++i) span[i] = values[i];
}

// place: entry, row, named, and how many of `rows` rows follow each other there
FLASH3_API void flash3_test_row_place(const flash3_params *params, int32_t b, int64_t row, int64_t rows,
                                      int64_t *place) {
  const KvCache cache = KvCache::of(*params);
  const RowPlace p = cache.place(cache.span(b), row);
  const int64_t values[] = {p.entry, p.row, p.named, cache.run(row, rows)};
  for (int i = 0; i < 4; ++i) place[i] = values[i];
}

// places: key, number of the page, and row in it, of each of so many blocks; block_n: 80, 96 or 128
FLASH3_API void flash3_test_page_walk(int32_t block_n, int32_t page_size, int32_t first_row, uint32_t first_key,
                                      int32_t blocks, int32_t *places) {
  (block_n == 80   ? put_walk<80>
   : block_n == 96 ? put_walk<96>
                   : put_walk<128>)(page_size, first_row, first_key, blocks, places);
}

// positions: of new row i and of query row i of sequence b
FLASH3_API void flash3_test_rotary_positions(const flash3_params *params, int32_t b, int64_t i, int64_t *positions) {
  const RotaryPositions p = RotaryPositions::of(*params);
  positions[0] = p.of_new_row(b, i);
  positions[1] = p.of_query_row(b, i);
}

// sections: narrow, num_wide, group
FLASH3_API void flash3_test_sections(int32_t num_columns, int32_t group, int64_t kv_bytes_per_kv_head, int64_t budget,
                                     int32_t *sections) {
  const Sections s = Sections::make(num_columns, group, kv_bytes_per_kv_head, budget);
  sections[0] = s.narrow;
  sections[1] = s.num_wide;
  sections[2] = s.group;
}

FLASH3_API uint32_t flash3_test_quotient(uint32_t n, int64_t divisor) { return Divisor::make(divisor).quotient(n); }

// most: groups in a section at most. tile: m_block, head, batch
FLASH3_API void flash3_test_dense_tile(int32_t num_m_blocks, int32_t nheads, int32_t batch, int32_t group, int32_t most,
                                       int32_t t, int32_t *tile) {
  const Sections sections = Sections::make(nheads * batch, group, 1, most);
  put(DenseSchedule::make(num_m_blocks, nheads, sections).tile(t), tile);
}

FLASH3_API int32_t flash3_test_pairs_of(int32_t num_m_blocks) { return pairs_of(num_m_blocks); }

FLASH3_API int32_t flash3_test_tile_of_pair(int32_t pair, int32_t rank, int32_t num_m_blocks) {
  return tile_of_pair(pair, rank, num_m_blocks);
}

FLASH3_API int32_t flash3_test_find_sequence(const int32_t *first, int32_t n, int32_t x) {
  return find_sequence(first, n, x, CountLeading{});
}

FLASH3_API int64_t flash3_test_varlen_num_tiles(const int32_t *first_m_block, int32_t nheads, int32_t batch) {
  return VarlenSchedule{first_m_block, nheads, batch}.num_tiles();
}

// most: (batch), heads in a section at most. tile: m_block, head, batch
FLASH3_API void flash3_test_varlen_tile(const int32_t *first_m_block, int32_t nheads, int32_t batch,
                                        const int32_t *most, int32_t t, int32_t *tile) {
  const VarlenSchedule schedule = {first_m_block, nheads, batch};
  put(schedule.tile(t, CountLeading{}, [=](int32_t b) { return Sections::make(nheads, 1, 1, most[b]); }), tile);
}

// layout: the fields of WorkspaceLayout in order
FLASH3_API void flash3_test_workspace_layout(const flash3_params *params, uint64_t *layout) {
  const WorkspaceLayout w = workspace_layout(*params);
  static_assert(sizeof(w) == 7 * sizeof(*layout));
  std::memcpy(layout, &w, sizeof(w));
}

// The head dim of the cache config that holds the head dims, 0 for none.
FLASH3_API int32_t flash3_test_cache_class(int32_t head_dim, int32_t head_dim_v) {
  const TileConfig *found = cache_config(head_dim, head_dim_v);
  return found == nullptr ? 0 : found->head_dim;
}

// outer * tanh(inner * s) - subtracted, by the polynomial of few terms or by the other one. few_range: few_limit,
// few_top, and whether few terms reach if `subtracted` is the reference.
FLASH3_API float flash3_test_softcap(float inner, float outer, float s, float subtracted, int32_t few,
                                     float *few_range) {
  const SoftcapPolynomial f = SoftcapPolynomial::make(inner, outer);
  few_range[0] = f.few_limit;
  few_range[1] = f.few_top;
  few_range[2] = f.few_terms_reach(subtracted) ? 1.f : 0.f;
  return few != 0 ? f.of_few_terms(s, subtracted) : f.of_all_terms(s * f.twice_inner, subtracted);
}

// outer * tanh(inner * s) by the monic polynomial; s is a product times q_factor. facts: q_factor, largest, least_mean.
FLASH3_API float flash3_test_monic_softcap(float inner, float outer, float s, float *facts) {
  const MonicSoftcap f = MonicSoftcap::make(inner, outer);
  facts[0] = f.q_factor;
  facts[1] = f.largest;
  facts[2] = f.least_mean;
  return f.value(s);
}

// The status of validate(); its message, cut to `capacity` bytes with the final 0, goes to `message`.
FLASH3_API int32_t flash3_test_validate(const flash3_params *params, char *message, int32_t capacity) {
  return put(validate(*params), message, capacity);
}

// The same for validate_combine().
FLASH3_API int32_t flash3_test_validate_combine(const flash3_combine_params *params, char *message, int32_t capacity) {
  return put(validate_combine(*params), message, capacity);
}

// The same for check_architecture().
FLASH3_API int32_t flash3_test_check_architecture(int32_t device, int32_t capability, const char *built, char *message,
                                                  int32_t capacity) {
  return put(check_architecture(device, capability, built), message, capacity);
}

}  // extern "C"
