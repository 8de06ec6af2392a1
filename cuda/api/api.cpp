// The C interface. Nothing but statuses and messages leaves it: no exception, no output.
#include <exception>
#include <string>

#include "core/status.h"
#include "core/validate.h"
#include "core/workspace.h"
#include "flash3.h"
#include "host/engine.h"
#if defined(FLASH3_WITH_CUDA)
#include "launch/fwd.h"
#endif

#define FLASH3_TEXT_(x) #x
#define FLASH3_TEXT(x) FLASH3_TEXT_(x)

namespace {

using flash3::core::error;
using flash3::core::Status;

#if defined(FLASH3_WITH_CUDA)
namespace cuda = flash3::launch;
#else
namespace cuda {
Status missing() {
  return error(FLASH3_UNSUPPORTED,
               "backend is 1 (CUDA); it must be 0 (host), since this library was built without CUDA (FLASH3_CUDA=OFF)");
}
Status forward(const flash3_params &, void *) { return missing(); }
Status combine(const flash3_combine_params &, void *) { return missing(); }
Status device_check(int32_t) { return missing(); }
const char *built_kernels() { return "archs=\ndtypes=\nhead_dims=\ncuda="; }
}  // namespace cuda
#endif

std::string &last_error() {
  thread_local std::string message;
  return message;
}

// Runs body() -> Status, keeps its message and turns every exception into a status.
template <class Body>
flash3_status guarded(Body body) noexcept {
  try {
    last_error().clear();
    Status status = body();
    last_error() = std::move(status.message);
    return status.code;
  } catch (const std::exception &e) {
    try {
      last_error() = std::string("internal error: ") + e.what();
    } catch (...) {  // no memory for the message: the status alone must do
    }
  } catch (...) {
  }
  return FLASH3_INTERNAL;
}

Status null_argument(const char *name) {
  return error(FLASH3_INVALID_ARGUMENT, name, " is NULL; it must be a pointer");
}

bool has_query_rows(const flash3_params &params) {
  return params.batch > 0 && (params.cu_seqlens_q != nullptr ? params.total_q : params.seqlen_q) > 0;
}

bool has_new_rows(const flash3_params &params) { return params.batch > 0 && params.k_new != nullptr; }

Status run(const flash3_params *params, void *stream) {
  if (params == nullptr) return null_argument("params");
  Status status = flash3::core::validate(*params);
  if (!status.ok() || !(has_query_rows(*params) || has_new_rows(*params))) return status;
  return params->backend == FLASH3_BACKEND_CUDA ? cuda::forward(*params, stream) : flash3::host::forward(*params);
}

Status combine(const flash3_combine_params *params, void *stream) {
  if (params == nullptr) return null_argument("params");
  Status status = flash3::core::validate_combine(*params);
  if (!status.ok() || params->batch == 0 || params->seqlen == 0) return status;
  return params->backend == FLASH3_BACKEND_CUDA ? cuda::combine(*params, stream) : flash3::host::combine(*params);
}

Status workspace_size(const flash3_params *params, size_t *bytes) {
  if (params == nullptr) return null_argument("params");
  if (bytes == nullptr) return null_argument("bytes");
  Status status = flash3::core::validate_problem(*params);
  if (status.ok()) *bytes = flash3::core::workspace_layout(*params).bytes;
  return status;
}

}  // namespace

extern "C" {

flash3_status run_mha_v3(const flash3_params *params, void *stream) {
  return guarded([=] { return run(params, stream); });
}

flash3_status flash3_combine(const flash3_combine_params *params, void *stream) {
  return guarded([=] { return combine(params, stream); });
}

flash3_status flash3_workspace_size(const flash3_params *params, size_t *bytes) {
  return guarded([=] { return workspace_size(params, bytes); });
}

flash3_status flash3_device_check(int32_t device) {
  return guarded([=] { return cuda::device_check(device); });
}

const char *flash3_last_error(void) { return last_error().c_str(); }

const char *flash3_version(void) {
  return FLASH3_TEXT(FLASH3_VERSION_MAJOR) "." FLASH3_TEXT(FLASH3_VERSION_MINOR) "." FLASH3_TEXT(FLASH3_VERSION_PATCH);
}

uint32_t flash3_abi_version(void) { return FLASH3_ABI_VERSION; }

const char *flash3_build_info(void) {
  static const std::string info = std::string(cuda::built_kernels()) + "\ncompiler=" __VERSION__ "\n";
  return info.c_str();
}

}  // extern "C"
