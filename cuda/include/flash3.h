/* libflash3: exact attention (FlashAttention-3 class) behind a plain C interface.
 *
 * One call computes, for every batch entry b, query head h and query row i,
 *
 *     s_ij  = softmax_scale * <q_i, k_j>
 *     s_ij  = softcap * tanh(s_ij / softcap)                        if softcap > 0
 *     s_ij -= alibi_slope_h * |i + seqlen_k - seqlen_q - j|         if alibi_slopes != NULL
 *     j is visible to i  <=>  i + seqlen_k - seqlen_q - window_left <= j <= i + seqlen_k - seqlen_q + window_right
 *     lse_i = log(sum over visible j of exp(s_ij)  [+ exp(sink_h)  if sinks != NULL])
 *     o_i   = sum over visible j of exp(s_ij - lse_i) * v_j
 *
 * A row that sees no key gives o = 0 and lse = -inf (sink_h when sinks are given).
 *
 * The library never allocates device memory, never synchronises, never prints and never exits. Every function is
 * thread-safe. "Stream" is a cudaStream_t passed as void *; NULL is the legacy default stream.
 */
#ifndef FLASH3_H_
#define FLASH3_H_

#include <stddef.h> /* size_t, for flash3_workspace_size only */
#include <stdint.h>

#if defined(__GNUC__)
#define FLASH3_API __attribute__((visibility("default")))
#else
#define FLASH3_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FLASH3_VERSION_MAJOR 0
#define FLASH3_VERSION_MINOR 1
#define FLASH3_VERSION_PATCH 0
/* Grows whenever the meaning or the place of a field of a struct below changes. */
#define FLASH3_ABI_VERSION 3u

typedef enum flash3_status {
  FLASH3_OK = 0,
  FLASH3_INVALID_ARGUMENT = 1, /* a field of params is wrong; flash3_last_error() names it */
  FLASH3_UNSUPPORTED = 2,      /* valid, but this build has no code for it (dtype, head dim, architecture) */
  FLASH3_NO_DEVICE = 3,        /* no CUDA driver or no such GPU */
  FLASH3_BAD_WORKSPACE = 4,    /* workspace is NULL, misaligned or smaller than flash3_workspace_size says */
  FLASH3_CUDA_ERROR = 5,       /* the CUDA runtime refused a launch */
  FLASH3_ABI_MISMATCH = 6,     /* struct_size or abi_version are not this library's */
  FLASH3_INTERNAL = 7          /* a defect of the library; please report it */
} flash3_status;

typedef enum flash3_backend {
  FLASH3_BACKEND_HOST = 0, /* every pointer is host memory; runs on CPU threads before the call returns */
  FLASH3_BACKEND_CUDA = 1  /* every pointer is memory of one CUDA device; enqueued on the stream */
} flash3_backend;

typedef enum flash3_dtype {
  FLASH3_FLOAT16 = 0,
  FLASH3_BFLOAT16 = 1,
  FLASH3_FLOAT32 = 2 /* host backend, and flash3_combine */
} flash3_dtype;

/* The parameters of attention.
 *
 * All strides count elements of the tensor, not bytes. The last dimension (head_dim) is always contiguous.
 *
 * "Dense" calls have cu_seqlens_q == cu_seqlens_k == NULL; q is (batch, seqlen_q, nheads, head_dim) and k, v are
 * (batch, seqlen_k, nheads_k, ...). "Varlen" calls pack the sequences of a batch one behind the other: q is
 * (total_q, nheads, head_dim) with cu_seqlens_q given, k and v are (total_k, nheads_k, ...) with cu_seqlens_k given.
 * The two sides may differ: q packed and k dense, or the reverse.
 *
 * k and v may be a cache for sequences that grow. seqused_k then says how many rows of each are filled, and the keys of
 * sequence b are its rows from cache_leftpad[b] on. A "paged" cache has page_table: k and v are (num_pages, page_size,
 * nheads_k, ...), and row j of sequence b is row j % page_size of page page_table[b][j / page_size]. With k_new and
 * v_new, their rows are first written behind the filled ones, and are keys like these: seqlen_k of the formula above is
 * seqused_k[b] plus the new rows, less cache_leftpad[b]. Nothing else of the cache is written; what rows hold that are
 * no keys of a sequence never matters to it. No two sequences may add a row at the same place, and none may have a row
 * as a key that another one adds.
 *
 * Without v (v == NULL) the values are the first head_dim_v columns of k: a latent cache, as multi-head latent
 * attention (MLA) decodes with it, where head_dim is 576, head_dim_v is 512, and one KV head serves all query heads.
 * New rows are then those of k_new alone.
 *
 * The host backend computes all that is valid. On the CUDA backend a call that this build has no kernel for is
 * FLASH3_UNSUPPORTED; nothing is launched then.
 *
 * A page id or batch index that names nothing, or a length beyond the capacity, gives that sequence a wrong result:
 * reads are clamped to the tensors, and new rows that have no place are dropped.
 */
typedef struct flash3_params {
  uint32_t struct_size; /* sizeof(flash3_params) */
  uint32_t abi_version; /* FLASH3_ABI_VERSION */

  int32_t backend; /* flash3_backend */
  int32_t device;  /* CUDA ordinal of all device pointers; -1: the calling thread's current device. Host: ignored */
  int32_t dtype;   /* flash3_dtype of q, k, v and out */
  int32_t nheads;  /* query heads, a multiple of nheads_k */
  int32_t nheads_k;
  int32_t head_dim;   /* of q and k: a multiple of 8 from 8 to 576 */
  int32_t head_dim_v; /* of v and out: a multiple of 8 from 8 to 512; without v at most head_dim */
  int32_t batch;      /* number of sequences; 0 returns at once */

  int64_t seqlen_q; /* dense q: rows of each batch entry; packed q: ignored */
  int64_t seqlen_k; /* dense k, v: rows of each batch entry; packed or paged k: ignored */
  int64_t total_q;  /* packed q: rows of q; dense: ignored */
  int64_t total_k;  /* packed k: rows of k and v; dense: ignored */

  /* (batch, seqlen_q, nheads, head_dim) or (total_q, nheads, head_dim), of dtype. Not NULL unless it has no element. */
  const void *q;
  /* (batch, seqlen_k, nheads_k, head_dim), (total_k, nheads_k, head_dim) or, paged, (num_pages, page_size, nheads_k,
   * head_dim), of dtype. With cache_batch_idx the first of these has batch_cache entries. NULL only if it has no
   * element. Written only if k_new is given. */
  const void *k;
  /* As k, with head_dim_v. NULL: the first head_dim_v columns of k; the strides of v are then ignored. */
  const void *v;
  /* (batch, seqlen_q, nheads, head_dim_v) or (total_q, nheads, head_dim_v), of dtype. As q. It must not
   * overlap what is read. */
  void *out;
  /* (batch, nheads, seqlen_q) or (nheads, total_q), float32, rows contiguous, natural logarithm; NULL: not wanted */
  float *lse;

  /* Device pointers and strides must be multiples of 16 bytes on the CUDA backend. Batch strides of packed tensors are
   * ignored; those of paged k and v lead from page to page. */
  int64_t q_batch_stride, q_row_stride, q_head_stride;
  int64_t k_batch_stride, k_row_stride, k_head_stride;
  int64_t v_batch_stride, v_row_stride, v_head_stride;
  int64_t out_batch_stride, out_row_stride, out_head_stride;
  int64_t lse_batch_stride, lse_head_stride; /* packed q: the batch stride is ignored */

  const int32_t *cu_seqlens_q; /* (batch + 1): first row of each sequence of q, then total_q; NULL: q is dense */
  const int32_t *cu_seqlens_k; /* (batch + 1): first row of each sequence of k, then total_k; NULL: k is dense */
  const int32_t *seqused_q;    /* (batch): rows of q in use, at most the sequence's own; NULL: all */
  /* (batch): rows of k in use, at most the sequence's own, cache_leftpad included and new rows not; NULL: all. Not NULL
   * with k_new. */
  const int32_t *seqused_k;
  int64_t max_seqlen_q; /* tuning hint for packed q; 0: unknown. Changes a result by rounding at most */
  int64_t max_seqlen_k; /* tuning hint for packed or cached k; 0: unknown. As above */

  /* The cache. All of it goes with dense or paged k alone. */
  const int32_t *cache_batch_idx;  /* (batch): entry of k and v, or row of page_table; NULL: sequence b has number b */
  const int32_t *cache_leftpad;    /* (batch): rows at the start of each sequence that are no keys; NULL: 0 */
  const int32_t *page_table;       /* (batch, max_pages), or (batch_cache, max_pages): page ids; NULL: k is not paged.
                                    * Entries behind the last row in use are not read */
  int64_t page_table_batch_stride; /* >= 0; max_pages is contiguous */
  int32_t batch_cache;             /* with cache_batch_idx: entries of k and v, or rows of page_table; else ignored */
  int32_t page_size;               /* with page_table: rows of a page, >= 1; else ignored */
  int32_t num_pages;               /* with page_table: pages of k and v, >= 1; else ignored */
  int32_t max_pages;               /* with page_table: pages of a sequence at most, >= 1; else ignored */

  /* Rows to append, (batch, seqlen_k_new, nheads_k, head_dim) or with cu_seqlens_k_new (total_k_new, nheads_k,
   * head_dim), of dtype; NULL: none. Sequences that append to the same rows of the cache leave one of their values
   * there. */
  const void *k_new;
  /* As k_new, with head_dim_v. NULL if k_new or v is, and only then. */
  const void *v_new;
  int64_t k_new_batch_stride, k_new_row_stride, k_new_head_stride;
  int64_t v_new_batch_stride, v_new_row_stride, v_new_head_stride;
  const int32_t *cu_seqlens_k_new; /* (batch + 1): first row of each sequence of k_new, then total_k_new; NULL: dense */
  int64_t seqlen_k_new;            /* dense k_new: rows of each batch entry; else ignored */
  int64_t total_k_new;             /* packed k_new: rows of it; else ignored */

  /* Rotary embedding of q, and of k_new on its way into the cache; both are rounded to dtype. (seqlen_rotary,
   * rotary_dim / 2), of dtype: cosine and sine at each position; both NULL: off. New row t has position base + t, where
   * base is rotary_seqlens[b]; query row i has position base + i if a window side is limited (causal is), and base if
   * not. Positions outside of the tables are clamped to them. Pointers and strides as of q. */
  const void *rotary_cos;
  const void *rotary_sin;
  int64_t rotary_cos_row_stride, rotary_sin_row_stride;
  const int32_t *rotary_seqlens; /* (batch); NULL: seqused_k, which is then not NULL. Ignored without rotary_cos */
  int64_t seqlen_rotary;         /* with rotary_cos: positions of the tables, >= 1; else ignored */
  int32_t rotary_dim;            /* with rotary_cos: leading columns that are rotated, a multiple of 16; else ignored */
  int32_t rotary_interleaved;    /* 1: columns 2i and 2i + 1 are a pair, 0: i and i + rotary_dim / 2; else ignored */

  float softmax_scale;  /* finite; usually 1 / sqrt(head_dim) */
  float softcap;        /* 0: off; otherwise finite and > 0 */
  int64_t window_left;  /* keys visible to the left of the diagonal, inclusive; -1: all */
  int64_t window_right; /* keys visible to the right of the diagonal, inclusive; -1: all; 0: causal */

  const float *alibi_slopes;  /* (nheads) or (batch, nheads), float32; NULL: off */
  int64_t alibi_batch_stride; /* 0 for (nheads), else the stride of batch */
  const float *sinks;         /* (nheads), float32: logit of a key without a value; NULL: off */

  /* Pieces that the keys of a tile of queries are shared out in: 0: the library chooses, else 1 to 256. The host
   * backend makes one pass in any case. */
  int32_t num_splits;
  /* CUDA: multiprocessors to leave to others, >= 0; no effect where a head dim is above 256. With num_splits 0 it may
   * change the rounding. */
  int32_t sm_margin;
  int32_t num_threads; /* host: threads to use; 0: all cores. CUDA: ignored */
  int32_t reserved;    /* 0 */

  /* Scratch of at least flash3_workspace_size() bytes, aligned to 256, of the backend's memory. Its contents need no
   * initialisation; calls in flight at the same time need one each. NULL only where the size is 0. */
  void *workspace;
  uint64_t workspace_bytes;
} flash3_params;

/* The parameters of flash3_combine, which merges attention over parts of the keys: for every batch entry, row and head
 *
 *     lse = log(sum over splits of exp(lse_partial))
 *     out = sum over splits of exp(lse_partial - lse) * out_partial
 *
 * A split with lse_partial = -inf has seen no key, and its out_partial is not read. With nothing but such splits, out
 * is 0 and lse is -inf. Strides count elements; head_dim is contiguous. */
typedef struct flash3_combine_params {
  uint32_t struct_size; /* sizeof(flash3_combine_params) */
  uint32_t abi_version; /* FLASH3_ABI_VERSION */

  int32_t backend;    /* flash3_backend */
  int32_t device;     /* as in flash3_params */
  int32_t dtype;      /* flash3_dtype of out */
  int32_t num_splits; /* 1 to 256 */
  int32_t batch;
  int32_t nheads;      /* at least 1 */
  int32_t head_dim;    /* at least 1 */
  int32_t num_threads; /* as in flash3_params */
  int64_t seqlen;      /* rows of each batch entry */

  /* None of them is NULL unless it has no element, but for lse. out_partial and out, and their strides, must be
   * multiples of 16 bytes on the CUDA backend. */
  const float *out_partial; /* (num_splits, batch, seqlen, nheads, head_dim) */
  const float *lse_partial; /* (num_splits, batch, seqlen, nheads), natural logarithm */
  void *out;                /* (batch, seqlen, nheads, head_dim), of dtype */
  float *lse;               /* (batch, seqlen, nheads), natural logarithm; NULL: not wanted */
  int64_t out_partial_split_stride, out_partial_batch_stride, out_partial_row_stride, out_partial_head_stride;
  int64_t lse_partial_split_stride, lse_partial_batch_stride, lse_partial_row_stride, lse_partial_head_stride;
  int64_t out_batch_stride, out_row_stride, out_head_stride;
  int64_t lse_batch_stride, lse_row_stride, lse_head_stride;
} flash3_combine_params;

/* Name, offset and size in bytes of a field of a struct above, for bindings that mirror it. */
typedef struct flash3_field {
  const char *name;
  uint32_t offset;
  uint32_t size;
} flash3_field;

/* Computes attention as params say. CUDA: everything is enqueued on the stream, and the call can be captured into a
 * graph. Host: returns when out is written; stream is ignored. */
FLASH3_API flash3_status run_mha_v3(const flash3_params *params, void *stream);

/* Bytes of scratch that run_mha_v3 needs for these params, all of which must be as they will be then: shapes, numbers
 * and which pointers are NULL, but not where they point. A smaller call may need more than a larger one. workspace and
 * workspace_bytes are not read. */
FLASH3_API flash3_status flash3_workspace_size(const flash3_params *params, size_t *bytes);

/* Combines partial results as params say. CUDA: enqueued on the stream. Host: returns when out is written. */
FLASH3_API flash3_status flash3_combine(const flash3_combine_params *params, void *stream);

/* What the last failing call on this thread found wrong: the argument, its value, what is allowed. Never NULL; valid
 * until the next call on this thread. */
FLASH3_API const char *flash3_last_error(void);

/* "major.minor.patch" */
FLASH3_API const char *flash3_version(void);

/* FLASH3_ABI_VERSION of the library. */
FLASH3_API uint32_t flash3_abi_version(void);

/* The fields of flash3_params in order; *count receives how many. */
FLASH3_API const flash3_field *flash3_params_layout(uint32_t *count);

/* The same for flash3_combine_params. */
FLASH3_API const flash3_field *flash3_combine_params_layout(uint32_t *count);

/* What was built, one "key=value" per line: archs, dtypes, head_dims (empty without CUDA), cuda, compiler. */
FLASH3_API const char *flash3_build_info(void);

/* Whether this build can run on that CUDA device (-1: the current one): FLASH3_OK, FLASH3_NO_DEVICE, or
 * FLASH3_UNSUPPORTED with a message that names the device's architecture and the ones built. */
FLASH3_API flash3_status flash3_device_check(int32_t device);

#ifdef __cplusplus
}
#endif
#endif /* FLASH3_H_ */
