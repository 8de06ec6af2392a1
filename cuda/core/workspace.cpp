#include "core/workspace.h"

#include "core/dtype.h"
#include "core/split_config.h"
#include "core/two_steps.h"

namespace flash3::core {

WorkspaceLayout workspace_layout(const flash3_params &params) {
  WorkspaceLayout layout = {};
  if (params.backend != FLASH3_BACKEND_CUDA || params.batch == 0) return layout;
  if (takes_two_steps(params)) {
    layout.bytes = TwoSteps::of(params).bytes;
    return layout;
  }
  uint64_t end = 0;
  const auto place = [&](uint64_t bytes) {
    const uint64_t begin = end;
    end += padded(bytes);
    return begin;
  };
  const Route route = route_of(params);
  const bool split = route.split;
  const bool table = !split && params.cu_seqlens_q != nullptr;
  layout.tile_counter = place(split ? 0 : sizeof(int32_t));
  layout.first_m_block = place(table ? (static_cast<uint64_t>(params.batch) + 1) * sizeof(int32_t) : 0);
  const SplitBounds bounds = split ? SplitBounds::of(params) : SplitBounds{};
  const int64_t rows_of_pieces = route.pieces.count > 1 ? route.pieces.count * query_rows(params) * params.nheads : 0;
  const auto partial_rows = static_cast<uint64_t>(split ? bounds.partial_rows : rows_of_pieces);
  layout.entries = place(static_cast<uint64_t>(bounds.entries) * sizeof(SplitEntry));
  layout.lse_partial = place(partial_rows * sizeof(float));
  layout.out_partial = place(partial_rows * params.head_dim_v * sizeof(float));
  const uint64_t q_elements = static_cast<uint64_t>(query_rows(params)) * params.nheads * params.head_dim;
  layout.rotated_q = place(params.rotary_cos != nullptr ? q_elements * element_bytes(params.dtype) : 0);
  layout.bytes = end;
  return layout;
}

}  // namespace flash3::core
