// Instructions of thread blocks that are a cluster.
#pragma once

#include <cstdint>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "device/ptx.cuh"

namespace flash3::device::ptx {

// Addresses are of shared memory: 32 bits, of the own block or, after mapa, of another one of the cluster.
__device__ __forceinline__ uint32_t cluster_rank() { return cute::block_rank_in_cluster(); }

__device__ __forceinline__ uint32_t mapa(uint32_t shared, uint32_t rank) { return cute::set_block_rank(shared, rank); }

// An address for matrix descriptors of a kernel with clusters: inside of the own block. The number of the block is part
// of shared addresses there, and a descriptor has no room for it.
__device__ __forceinline__ uint32_t address_in_block(const void *smem) { return shared_address(smem) & 0x3ffff; }

// By all threads of the cluster, warps converged: behind cluster_wait() the mbarriers are there that any of them has
// initialised, with fence_mbarrier_init(), before cluster_arrive_relaxed(). Nothing else is ordered, and nobody waits
// for stores to global memory.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  compiler_fence();
  cute::cluster_arrive_relaxed();
}
__device__ __forceinline__ void cluster_wait() {
  cute::cluster_wait();
  compiler_fence();
}

// On a barrier of any block of the cluster, after loads whose values have arrived, or reads that have been waited for.
// This and mbarrier_wait have the semantics of their own block only, as they do for buffers that the copy engine fills:
// in the whole cluster they would wait for this thread's accesses to global memory, and empty the first-level cache.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

// Stores 16 bytes in a block of the cluster, and counts them on a barrier of the same block.
__device__ __forceinline__ void st_async_16(uint32_t to, float x0, float x1, float x2, float x3, uint32_t bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "f"(x0), "f"(x1), "f"(x2), "f"(x3), "r"(bar)
               : "memory");
}

// The same with 8 bytes.
__device__ __forceinline__ void st_async_8(uint32_t to, float x0, float x1, uint32_t bar) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to), "f"(x0),
               "f"(x1), "r"(bar)
               : "memory");
}

// Into the same place of both blocks of a cluster, counted on the same barrier of each.
__device__ __forceinline__ void tma_load_both(void *smem, const void *map, uint64_t *bar, L2Hint hint, TmaCoord c) {
  constexpr uint16_t kBoth = 3;
  cute::SM90_TMA_LOAD_MULTICAST_5D::copy(map, bar, kBoth, static_cast<uint64_t>(hint), smem, c.col, c.row, c.end,
                                         c.head, c.batch);
}

}  // namespace flash3::device::ptx
