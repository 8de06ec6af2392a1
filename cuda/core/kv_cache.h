// Where the keys of a sequence lie in k and v: dense, packed or paged, behind left padding, the appended ones included.
// Like in seqlen.h, values from device memory are clamped to the arrays of the call.
#pragma once

#include <cstdint>

#include "core/call_facts.h"
#include "core/divisor.h"
#include "core/macros.h"
#include "core/seqlen.h"
#include "flash3.h"

namespace flash3::core {

// A row of k and v: that is row `row` of entry `entry`.
struct RowPlace {
  int64_t entry;  // batch entry or page; 0 in packed tensors
  int64_t row;
  bool named;  // false where page id or batch index name nothing: then the place is another's, to be read at most
};

// The keys of one sequence: key j is row first_row + j of the sequence, or of the packed tensor.
struct KeySpan {
  int64_t entry;  // of dense k and v, or row of the page table; 0 in packed tensors
  bool named;     // false where the batch index was out of range
  int64_t first_row;
  int32_t len;       // appended keys included
  int32_t appended;  // of them, at the end; more than len where the left padding reaches into the new rows

  FLASH3_HD int64_t first_appended_row() const { return first_row + len - appended; }
};

struct KvCache {
  SeqSide filled;             // before the append; its rows are what a sequence, or the packed tensor, has room for
  SeqSide appended;           // rows of k_new; none of them: rows is 0
  const int32_t *batch_idx;   // (batch); NULL: sequence b is entry b
  const int32_t *leftpad;     // (batch); NULL: 0
  const int32_t *page_table;  // NULL: not paged
  int64_t page_table_batch_stride;
  int32_t entries;  // that a batch index may name
  int32_t page_size;
  int32_t num_pages;
  Divisor page_divisor;  // page_size

  // params have passed validate.
  static KvCache of(const flash3_params &p) {
    KvCache cache = {};
    cache.filled = {p.cu_seqlens_k, p.seqused_k, p.cu_seqlens_k != nullptr ? p.total_k : key_capacity(p)};
    if (p.k_new != nullptr) {
      cache.appended = {p.cu_seqlens_k_new, nullptr, p.cu_seqlens_k_new != nullptr ? p.total_k_new : p.seqlen_k_new};
    }
    cache.batch_idx = p.cache_batch_idx;
    cache.leftpad = p.cache_leftpad;
    cache.page_table = p.page_table;
    cache.page_table_batch_stride = p.page_table_batch_stride;
    cache.entries = p.batch_cache;
    cache.page_size = p.page_size;
    cache.num_pages = p.num_pages;
    cache.page_divisor = Divisor::make(p.page_size);
    return cache;
  }

  FLASH3_HD KeySpan span(int32_t b) const {
    const SeqSpan old = filled.span(b);
    const int64_t room = filled.rows - old.len;
    int64_t num_new = appended.span(b).len;
    if (num_new > room) num_new = room;
    const int64_t end = old.len + num_new;
    const int64_t pad = leftpad == nullptr ? 0 : SeqSide::clamp(leftpad[b], 0, end);
    int64_t entry = filled.cu_seqlens != nullptr ? 0 : b;
    bool named = true;
    if (batch_idx != nullptr) {
      entry = SeqSide::clamp(batch_idx[b], 0, int64_t{entries} - 1);
      named = entry == batch_idx[b];
    }
    return {entry, named, old.start + pad, static_cast<int32_t>(end - pad), static_cast<int32_t>(num_new)};
  }

  // row: from first_row of the span, or first_appended_row, up to behind the last key.
  FLASH3_HD RowPlace place(const KeySpan &span, int64_t row) const {
    if (page_table == nullptr) return {span.entry, row, span.named};
    const int64_t number = page_divisor.quotient(static_cast<uint32_t>(row));
    const int64_t id = page_table[span.entry * page_table_batch_stride + number];
    const int64_t page = SeqSide::clamp(id, 0, int64_t{num_pages} - 1);
    return {page, row - number * page_size, span.named && page == id};
  }

  // The same in two steps, the first of which reads memory: what the page table says of a row, and what that means.
  // place() is not made of them, since the compiler then schedules a kernel for caches to save registers
  // (docs/performance.md, "What the compiler makes of it").
  FLASH3_HD int32_t page_id(const KeySpan &span, int64_t row) const {
    return page_table[span.entry * page_table_batch_stride + page_divisor.quotient(static_cast<uint32_t>(row))];
  }
  FLASH3_HD RowPlace place(const KeySpan &span, int64_t row, int32_t id) const {
    if (page_table == nullptr) return {span.entry, row, span.named};
    const int64_t number = page_divisor.quotient(static_cast<uint32_t>(row));
    const int64_t page = SeqSide::clamp(id, 0, int64_t{num_pages} - 1);
    return {page, row - number * page_size, span.named && page == id};
  }

  // How many of `rows` rows from `row` on follow each other in the place of the first one.
  FLASH3_HD int64_t run(int64_t row, int64_t rows) const {
    if (page_table == nullptr) return rows;
    const int64_t rest = page_size - row % page_size;
    return rows < rest ? rows : rest;
  }
};

}  // namespace flash3::core
