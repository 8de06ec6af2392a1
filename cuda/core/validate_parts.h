// What the files of validate.h share.
#pragma once

#include <cstdint>

#include "core/checker.h"
#include "flash3.h"

namespace flash3::core {

inline constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;
inline constexpr int64_t kMaxStrideBytes = int64_t{1} << 40;  // TMA, which loads the tiles on the GPU, takes no more

// struct_size comes first: a caller with another version of the struct may have no field behind abi_version.
template <class Params>
void check_version(const Params &p, const char *name, Checker &check) {
  check.require_or(FLASH3_ABI_MISMATCH, p.struct_size == sizeof(Params), "struct_size", p.struct_size, sizeof(Params),
                   ", the size of ", name, " in this library");
  if (!check.ok()) return;
  check.require_or(FLASH3_ABI_MISMATCH, p.abi_version == FLASH3_ABI_VERSION, "abi_version", p.abi_version,
                   FLASH3_ABI_VERSION, ", the version of this library");
}

template <class Params>
void check_backend(const Params &p, Checker &check) {
  const bool cuda = p.backend == FLASH3_BACKEND_CUDA;
  check.require(p.backend == FLASH3_BACKEND_HOST || cuda, "backend", p.backend, "0 (host) or 1 (CUDA)");
  check.require(!cuda || p.device >= -1, "device", p.device, "a CUDA device number or -1 (the current device)");
  check.require(p.dtype >= FLASH3_FLOAT16 && p.dtype <= FLASH3_FLOAT32, "dtype", p.dtype,
                "0 (float16), 1 (bfloat16) or 2 (float32)");
}

// Rows of each of `entries` batch entries; entries is 1 for a packed tensor.
void check_rows(Checker &check, const char *field, int64_t rows, int32_t entries);

// An address that is a multiple of alignment bytes; NULL is one.
void check_pointer(Checker &check, const char *field, const void *pointer, int64_t alignment);

struct Dim {
  const char *field = nullptr;  // of the stride
  int64_t stride = 0;           // elements
  int64_t extent = 1;
};

// All dimensions of a tensor but the last one.
struct Tensor {
  const char *field;
  const void *data;
  bool written;
  Dim dims[4];

  bool empty() const;
};

void check_tensor(Checker &check, const Tensor &tensor, int64_t element_bytes, bool cuda);

// cache_batch_idx to rotary_interleaved, but for tensors. params have passed the checks of all fields before them.
void check_cache(const flash3_params &params, Checker &check);

}  // namespace flash3::core
