// Where things lie in the workspace that the caller provides.
#pragma once

#include <cstdint>

#include "flash3.h"

namespace flash3::core {

inline constexpr uint64_t kWorkspaceAlignment = 256;
constexpr uint64_t padded(uint64_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

// Byte offsets from params.workspace, each a multiple of kWorkspaceAlignment. A part that a call has no use for has
// the offset of the part behind it.
struct WorkspaceLayout {
  uint64_t tile_counter;   // int32: next tile of the persistent grid
  uint64_t first_m_block;  // int32 (batch + 1), only with cu_seqlens_q: see VarlenSchedule
  // Of the split-KV kernel, bounds: SplitBounds; but for entries, also where tiles are computed in pieces (Route): then
  // as many times the rows of q and heads.
  uint64_t entries;      // SplitEntry (entries)
  uint64_t lse_partial;  // float (partial_rows)
  uint64_t out_partial;  // float (partial_rows, head_dim_v)
  uint64_t rotated_q;    // (rows of q, nheads, head_dim) of dtype, only with rotary_cos; may be left unused
  uint64_t bytes;        // all of it; of a call in two steps (TwoSteps) there is nothing else here
};

// params have passed validate_problem. The host backend needs no workspace.
WorkspaceLayout workspace_layout(const flash3_params &params);

}  // namespace flash3::core
