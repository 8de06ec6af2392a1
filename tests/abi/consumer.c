/* A user of libflash3 who has nothing but a C11 compiler and flash3.h: attention on host memory against a plain loop,
 * and the statuses and messages of wrong calls. Prints what failed; the exit status is the number of failures. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flash3.h"

enum { BATCH = 2, SEQLEN_Q = 70, SEQLEN_K = 150, NHEADS = 4, NHEADS_K = 2, DIM = 24, DIM_V = 16 };

static float q[BATCH][SEQLEN_Q][NHEADS][DIM];
static float k[BATCH][SEQLEN_K][NHEADS_K][DIM];
static float v[BATCH][SEQLEN_K][NHEADS_K][DIM_V];
static float out[BATCH][SEQLEN_Q][NHEADS][DIM_V];
static float lse[BATCH][NHEADS][SEQLEN_Q];

static int failures = 0;

static void check(int holds, const char *what) {
  if (holds) return;
  ++failures;
  printf("FAILED: %s (last error: \"%s\")\n", what, flash3_last_error());
}

/* Numbers in [-1, 1), always the same. */
static void fill(float *x, size_t count) {
  static uint32_t state = 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
  }
}

static flash3_params dense_params(void) {
  flash3_params p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  p.abi_version = FLASH3_ABI_VERSION;
  p.backend = FLASH3_BACKEND_HOST;
  p.dtype = FLASH3_FLOAT32;
  p.batch = BATCH;
  p.nheads = NHEADS;
  p.nheads_k = NHEADS_K;
  p.head_dim = DIM;
  p.head_dim_v = DIM_V;
  p.seqlen_q = SEQLEN_Q;
  p.seqlen_k = SEQLEN_K;
  p.q = q;
  p.k = k;
  p.v = v;
  p.out = out;
  p.lse = &lse[0][0][0];
  p.q_head_stride = p.k_head_stride = DIM;
  p.v_head_stride = p.out_head_stride = DIM_V;
  p.q_row_stride = NHEADS * DIM;
  p.k_row_stride = NHEADS_K * DIM;
  p.v_row_stride = NHEADS_K * DIM_V;
  p.out_row_stride = NHEADS * DIM_V;
  p.q_batch_stride = SEQLEN_Q * p.q_row_stride;
  p.k_batch_stride = SEQLEN_K * p.k_row_stride;
  p.v_batch_stride = SEQLEN_K * p.v_row_stride;
  p.out_batch_stride = SEQLEN_Q * p.out_row_stride;
  p.lse_head_stride = SEQLEN_Q;
  p.lse_batch_stride = NHEADS * SEQLEN_Q;
  p.softmax_scale = 0.2f;
  p.window_left = p.window_right = -1;
  return p;
}

/* The formula at the top of flash3.h, one row, in double. Writes o (DIM_V) and returns lse. */
static double plain_row(const flash3_params *p, int b, int h, int i, double *o) {
  const int hk = h / (NHEADS / NHEADS_K);
  const int64_t diagonal = i + p->seqlen_k - p->seqlen_q;
  double sum = 0.0;
  memset(o, 0, DIM_V * sizeof *o);
  for (int j = 0; j < p->seqlen_k; ++j) {
    if (p->window_left >= 0 && j < diagonal - p->window_left) continue;
    if (p->window_right >= 0 && j > diagonal + p->window_right) continue;
    double s = 0.0;
    for (int d = 0; d < DIM; ++d) s += (double)q[b][i][h][d] * k[b][j][hk][d];
    s *= p->softmax_scale;
    if (p->softcap > 0) s = p->softcap * tanh(s / p->softcap);
    sum += exp(s);
    for (int d = 0; d < DIM_V; ++d) o[d] += exp(s) * v[b][j][hk][d];
  }
  for (int d = 0; d < DIM_V; ++d) o[d] = sum > 0 ? o[d] / sum : 0.0;
  return log(sum);
}

static void check_attention(const char *name, int64_t seqlen_k, int64_t window_left, int64_t window_right,
                            float softcap) {
  flash3_params p = dense_params();
  p.seqlen_k = seqlen_k;
  p.window_left = window_left;
  p.window_right = window_right;
  p.softcap = softcap;
  memset(out, 0xff, sizeof out);
  memset(lse, 0xff, sizeof lse);
  check(run_mha_v3(&p, NULL) == FLASH3_OK, name);
  double worst_out = 0.0, worst_lse = 0.0;
  for (int b = 0; b < BATCH; ++b) {
    for (int h = 0; h < NHEADS; ++h) {
      for (int i = 0; i < SEQLEN_Q; ++i) {
        double o[DIM_V];
        const double expected_lse = plain_row(&p, b, h, i, o);
        for (int d = 0; d < DIM_V; ++d) {
          const double error = fabs(out[b][i][h][d] - o[d]);
          if (!(error <= worst_out)) worst_out = error; /* also when it is NaN */
        }
        const double error =
            isinf(expected_lse) ? (lse[b][h][i] == expected_lse ? 0.0 : INFINITY) : fabs(lse[b][h][i] - expected_lse);
        if (!(error <= worst_lse)) worst_lse = error;
      }
    }
  }
  check(worst_out < 1e-6, name);
  check(worst_lse < 2e-6, name);
}

static void check_refused(flash3_params p, flash3_status status, const char *words) {
  float before[DIM_V];
  memcpy(before, out, sizeof before);
  check(run_mha_v3(&p, NULL) == status, words);
  check(strstr(flash3_last_error(), words) != NULL, words);
  check(memcmp(before, out, sizeof before) == 0, "a refused call writes nothing");
}

static void check_wrong_calls(void) {
  check(run_mha_v3(NULL, NULL) == FLASH3_INVALID_ARGUMENT, "params is NULL");
  check(strstr(flash3_last_error(), "params is NULL") != NULL, "message of params NULL");

  flash3_params p = dense_params();
  p.struct_size -= 8;
  check_refused(p, FLASH3_ABI_MISMATCH, "struct_size is");
  p = dense_params();
  p.abi_version += 1;
  check_refused(p, FLASH3_ABI_MISMATCH, "abi_version is 4; it must be 3");
  p = dense_params();
  p.head_dim = 20;
  check_refused(p, FLASH3_INVALID_ARGUMENT, "head_dim is 20; it must be a multiple of 8");
  p = dense_params();
  p.nheads_k = 3;
  check_refused(p, FLASH3_INVALID_ARGUMENT, "nheads is 4; it must be a multiple of nheads_k (3)");
  p = dense_params();
  p.k = NULL;
  check_refused(p, FLASH3_INVALID_ARGUMENT, "k is NULL");
  p = dense_params();
  p.softcap = -1.0f;
  check_refused(p, FLASH3_INVALID_ARGUMENT, "softcap is -1");
  p = dense_params();
  p.num_splits = 257;
  check_refused(p, FLASH3_INVALID_ARGUMENT, "num_splits is 257; it must be from 0 to 256");
  p = dense_params();
  p.k_new = k;
  p.v_new = v;
  check_refused(p, FLASH3_INVALID_ARGUMENT, "seqused_k is NULL; it must be given with k_new");

  p = dense_params();
  check(run_mha_v3(&p, NULL) == FLASH3_OK && flash3_last_error()[0] == '\0', "success leaves no message");
}

/* Keys in pages of four rows, in any order, and the last ten of each sequence appended by the call itself. */
static void check_paged_append(void) {
  enum { PAGE = 4, PAGES = 80, COLUMNS = 40, NEW = 10 };
  static float k_pages[PAGES][PAGE][NHEADS_K][DIM], v_pages[PAGES][PAGE][NHEADS_K][DIM_V];
  static float want[BATCH][SEQLEN_Q][NHEADS][DIM_V];
  int32_t table[BATCH][COLUMNS], filled[BATCH] = {SEQLEN_K - NEW, SEQLEN_K - NEW};
  memset(k_pages, 0xff, sizeof k_pages); /* NaN */
  memset(v_pages, 0xff, sizeof v_pages);
  for (int b = 0; b < BATCH; ++b) {
    for (int c = 0; c < COLUMNS; ++c) table[b][c] = (b * COLUMNS + c) * 37 % PAGES;
    for (int j = 0; j < SEQLEN_K - NEW; ++j) {
      memcpy(k_pages[table[b][j / PAGE]][j % PAGE], k[b][j], sizeof k[b][j]);
      memcpy(v_pages[table[b][j / PAGE]][j % PAGE], v[b][j], sizeof v[b][j]);
    }
  }
  flash3_params p = dense_params();
  p.window_right = 0;
  check(run_mha_v3(&p, NULL) == FLASH3_OK, "dense keys");
  memcpy(want, out, sizeof want);
  memset(out, 0xff, sizeof out);
  p.k_new = &k[0][SEQLEN_K - NEW];
  p.v_new = &v[0][SEQLEN_K - NEW];
  p.k_new_batch_stride = p.k_batch_stride, p.k_new_row_stride = p.k_row_stride, p.k_new_head_stride = p.k_head_stride;
  p.v_new_batch_stride = p.v_batch_stride, p.v_new_row_stride = p.v_row_stride, p.v_new_head_stride = p.v_head_stride;
  p.seqlen_k_new = NEW;
  p.seqused_k = filled;
  p.k = k_pages;
  p.v = v_pages;
  p.k_batch_stride = PAGE * p.k_row_stride;
  p.v_batch_stride = PAGE * p.v_row_stride;
  p.page_table = &table[0][0];
  p.page_table_batch_stride = p.max_pages = COLUMNS;
  p.num_pages = PAGES;
  p.page_size = PAGE;
  check(run_mha_v3(&p, NULL) == FLASH3_OK, "pages and new rows");
  check(memcmp(want, out, sizeof want) == 0, "the same keys in pages give the same bits");
  const int last = SEQLEN_K - 1;
  check(memcmp(k_pages[table[1][last / PAGE]][last % PAGE], k[1][last], sizeof k[1][last]) == 0, "the last new row");
}

static void check_combine(void) {
  static float parts[3][BATCH][SEQLEN_Q][NHEADS][DIM_V], parts_lse[3][BATCH][NHEADS][SEQLEN_Q];
  static float whole[BATCH][SEQLEN_Q][NHEADS][DIM_V], whole_lse[BATCH][NHEADS][SEQLEN_Q];
  flash3_params p = dense_params();
  check(run_mha_v3(&p, NULL) == FLASH3_OK, "whole");
  memcpy(whole, out, sizeof whole);
  memcpy(whole_lse, lse, sizeof whole_lse);
  const int begin[4] = {0, 60, 60, SEQLEN_K};
  for (int s = 0; s < 3; ++s) {
    p = dense_params();
    p.k = &k[0][begin[s]];
    p.v = &v[0][begin[s]];
    p.seqlen_k = begin[s + 1] - begin[s];
    p.out = parts[s];
    p.lse = &parts_lse[s][0][0][0];
    check(run_mha_v3(&p, NULL) == FLASH3_OK, "part");
  }
  flash3_combine_params c;
  memset(&c, 0, sizeof c);
  c.struct_size = sizeof c;
  c.abi_version = FLASH3_ABI_VERSION;
  c.dtype = FLASH3_FLOAT32;
  c.num_splits = 3;
  c.batch = BATCH;
  c.nheads = NHEADS;
  c.head_dim = DIM_V;
  c.seqlen = SEQLEN_Q;
  c.out_partial = &parts[0][0][0][0][0];
  c.lse_partial = &parts_lse[0][0][0][0];
  c.out = out;
  c.lse = &lse[0][0][0];
  c.out_partial_head_stride = c.out_head_stride = DIM_V;
  c.out_partial_row_stride = c.out_row_stride = NHEADS * DIM_V;
  c.out_partial_batch_stride = c.out_batch_stride = SEQLEN_Q * c.out_row_stride;
  c.out_partial_split_stride = BATCH * c.out_batch_stride;
  c.lse_partial_row_stride = c.lse_row_stride = 1;
  c.lse_partial_head_stride = c.lse_head_stride = SEQLEN_Q;
  c.lse_partial_batch_stride = c.lse_batch_stride = NHEADS * SEQLEN_Q;
  c.lse_partial_split_stride = BATCH * c.lse_batch_stride;
  check(flash3_combine(&c, NULL) == FLASH3_OK, "combine");
  double worst = 0.0;
  for (size_t i = 0; i < sizeof out / sizeof(float); ++i) {
    const double error = fabs((&out[0][0][0][0])[i] - (&whole[0][0][0][0])[i]);
    if (!(error <= worst)) worst = error;
  }
  for (size_t i = 0; i < sizeof lse / sizeof(float); ++i) {
    const double error = fabs((&lse[0][0][0])[i] - (&whole_lse[0][0][0])[i]);
    if (!(error <= worst)) worst = error;
  }
  check(worst < 2e-6, "parts of the keys, combined");
  check(flash3_combine(NULL, NULL) == FLASH3_INVALID_ARGUMENT, "combine of NULL");
  c.num_splits = 257;
  check(flash3_combine(&c, NULL) == FLASH3_INVALID_ARGUMENT, "257 splits");
  check(strstr(flash3_last_error(), "num_splits is 257; it must be from 1 to 256") != NULL, "message of 257 splits");
}

static void check_sizes(void) {
  flash3_params p = dense_params();
  size_t bytes = 99;
  check(flash3_workspace_size(&p, &bytes) == FLASH3_OK && bytes == 0, "the host backend needs no workspace");
  check(flash3_workspace_size(&p, NULL) == FLASH3_INVALID_ARGUMENT, "bytes is NULL");
  check(flash3_workspace_size(NULL, &bytes) == FLASH3_INVALID_ARGUMENT, "params is NULL");
  p.backend = FLASH3_BACKEND_CUDA;
  p.dtype = FLASH3_FLOAT16;
  check(flash3_workspace_size(&p, &bytes) == FLASH3_OK && bytes > 0 && bytes < 4096, "workspace of a dense CUDA call");

  p = dense_params();
  p.batch = 0;
  p.q = p.k = p.v = p.out = p.lse = NULL;
  check(run_mha_v3(&p, NULL) == FLASH3_OK, "batch 0");
  p = dense_params();
  p.seqlen_q = 0;
  p.q = p.out = NULL;
  check(run_mha_v3(&p, NULL) == FLASH3_OK, "no query rows");
}

static void check_tables(void) {
  uint32_t count = 0;
  const flash3_field *fields = flash3_params_layout(&count);
  check(count > 0 && strcmp(fields[0].name, "struct_size") == 0 && fields[0].offset == 0, "first field");
  check(strcmp(fields[count - 1].name, "workspace_bytes") == 0, "last field");
  check(fields[count - 1].offset == offsetof(flash3_params, workspace_bytes), "place of the last field");
  check(flash3_abi_version() == FLASH3_ABI_VERSION, "ABI version");
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", FLASH3_VERSION_MAJOR, FLASH3_VERSION_MINOR, FLASH3_VERSION_PATCH);
  check(strcmp(flash3_version(), version) == 0, "version");
  const char *keys[] = {"archs=", "dtypes=", "head_dims=", "cuda=", "compiler="};
  const char *line = flash3_build_info();
  for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i) {
    check(line != NULL && strncmp(line, keys[i], strlen(keys[i])) == 0, keys[i]);
    line = line != NULL && strchr(line, '\n') != NULL ? strchr(line, '\n') + 1 : NULL;
  }
  check(line != NULL && *line == '\0', "one line for each key");
}

int main(void) {
  fill(&q[0][0][0][0], sizeof q / sizeof(float));
  fill(&k[0][0][0][0], sizeof k / sizeof(float));
  fill(&v[0][0][0][0], sizeof v / sizeof(float));
  const int64_t wide = (int64_t)1 << 60;
  check_attention("full", SEQLEN_K, -1, -1, 0.0f);
  check_attention("causal", SEQLEN_K, -1, 0, 0.0f);
  check_attention("window", SEQLEN_K, 9, 4, 0.0f);
  check_attention("window wider than everything", SEQLEN_K, wide, wide, 0.0f);
  check_attention("causal, first rows without a key", 30, -1, 0, 0.0f);
  check_attention("no keys", 0, -1, -1, 0.0f);
  check_attention("softcap", SEQLEN_K, -1, -1, 0.5f);
  check_paged_append();
  check_combine();
  check_wrong_calls();
  check_sizes();
  check_tables();
  if (failures == 0) printf("consumer: all checks passed\n");
  return failures;
}
