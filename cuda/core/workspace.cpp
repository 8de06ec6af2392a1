#include "core/workspace.h"

namespace flash3::core {
namespace {

uint64_t padded(uint64_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

}  // namespace

WorkspaceLayout workspace_layout(const flash3_params &params) {
  WorkspaceLayout layout = {0, 0, 0};
  if (params.backend != FLASH3_BACKEND_CUDA || params.batch == 0) return layout;
  layout.tile_counter = 0;
  layout.first_m_block = layout.tile_counter + padded(sizeof(int32_t));
  const uint64_t entries = params.cu_seqlens_q != nullptr ? static_cast<uint64_t>(params.batch) + 1 : 0;
  layout.bytes = layout.first_m_block + padded(entries * sizeof(int32_t));
  return layout;
}

}  // namespace flash3::core
