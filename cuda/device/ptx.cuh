// The Hopper instructions that the kernels use, one per function and named after it. Atoms and barriers come from
// CUTLASS's architecture layer; what it lacks is written here.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cstdint>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/util.hpp>

namespace flash3::device::ptx {

// A value that is the same in every lane, made known as such: a shuffle's result can live in uniform registers, steer
// uniform branches, and is not computed again wherever it is used.
template <class T>
__device__ __forceinline__ T uniform(T x) {
  return __shfl_sync(0xffffffffu, x, 0);
}
template <class T>
__device__ __forceinline__ T *uniform(T *x) {
  return reinterpret_cast<T *>(__shfl_sync(0xffffffffu, reinterpret_cast<uint64_t>(x), 0));
}

// A condition that is the same in every lane, made known as such, for branches.
__device__ __forceinline__ bool uniform(bool condition) { return __any_sync(0xffffffffu, condition); }

// Whether a condition holds in every lane, made known as the same in all of them.
__device__ __forceinline__ bool uniform_all(bool condition) { return __all_sync(0xffffffffu, condition); }

// The caller's lane, asked for here and now: what follows from threadIdx.x may be computed where a kernel begins, and
// takes registers from there on.
__device__ __forceinline__ int lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// Of a converged warp, one lane, always the same; unlike a comparison of lane numbers this tells the compiler that it
// is only one.
__device__ __forceinline__ bool elect_one() { return cute::elect_one_sync(); }

__device__ __forceinline__ uint32_t shared_address(const void *smem) { return cute::cast_smem_ptr_to_uint(smem); }
template <class T>
__device__ __forceinline__ T *from_shared_address(uint32_t at) {
  return static_cast<T *>(__cvta_shared_to_generic(at));
}

using Barrier = cutlass::arch::ClusterTransactionBarrier;

// CUTLASS's barrier instructions do not tell the compiler that memory is involved.
__device__ __forceinline__ void compiler_fence() { asm volatile("" ::: "memory"); }

__device__ __forceinline__ void mbarrier_init(uint64_t *bar, uint32_t arrivals) { Barrier::init(bar, arrivals); }

// Returns once the phase of the given parity has completed.
__device__ __forceinline__ void mbarrier_wait(const uint64_t *bar, uint32_t parity) {
  Barrier::wait(bar, parity);
  compiler_fence();
}

// Whether it has; without waiting, so that several barriers can be asked at once.
__device__ __forceinline__ bool mbarrier_test(const uint64_t *bar, uint32_t parity) {
  uint32_t passed;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(passed)
               : "r"(shared_address(bar)), "r"(parity)
               : "memory");
  return passed != 0;
}

__device__ __forceinline__ void mbarrier_arrive(const uint64_t *bar) {
  compiler_fence();
  Barrier::arrive(bar);
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(const uint64_t *bar, uint32_t bytes) {
  compiler_fence();
  Barrier::arrive_and_expect_tx(bar, bytes);
}

// Makes mbarrier initialisations visible to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() { cutlass::arch::fence_barrier_init(); }

// Orders this thread's ordinary shared-memory accesses before later ones of the copy engine and the tensor cores.
__device__ __forceinline__ void fence_proxy_async_shared() { cute::tma_store_fence(); }

// Orders this thread's accesses to memory before those of the copy engine that are asked for behind a barrier.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

__device__ __forceinline__ void bar_sync(uint32_t id, uint32_t threads) {
  compiler_fence();
  cutlass::arch::NamedBarrier::sync(threads, id);
  compiler_fence();
}

// All threads of the block meet, like at __syncthreads(), but from as many places in the code as there are roles: each
// warp waits where it goes on, so that the code there has come when it does. Fetched later, behind the first loads of
// all multiprocessors, it takes microseconds. "barrier" and not "bar", which synccheck wants all threads at one place
// for. The hardware's barrier 1, which is CUTLASS's own and not used here.
__device__ __forceinline__ void meet(uint32_t threads) {
  asm volatile("barrier.sync 1, %0;" ::"r"(threads) : "memory");
}

__device__ __forceinline__ void bar_arrive(uint32_t id, uint32_t threads) {
  compiler_fence();
  cutlass::arch::NamedBarrier::arrive(threads, id);
}

template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  cutlass::arch::warpgroup_reg_alloc<kRegisters>();
}

template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  cutlass::arch::warpgroup_reg_dealloc<kRegisters>();
}

// Programmatic dependent launch: lets the next kernel of the stream start, if it was launched so.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Copies 16 bytes, or writes zeros where `bytes` is 0; `from` is not read then. Ordinary accesses for the memory model:
// the tensor cores see them after fence_proxy_async_shared().
__device__ __forceinline__ void cp_async_16(uint32_t shared, const void *from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
}

// Returns once all copies of this thread so far have completed.
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// One of the arrivals that the barrier counts, once all copies of this thread so far have completed.
__device__ __forceinline__ void cp_async_mbarrier_arrive(const uint64_t *bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}

// Returns once the kernel before, if it let this one start early, has completed and what it wrote can be seen.
__device__ __forceinline__ void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

struct TmaCoord {
  int32_t col, row, end, head, batch;
};

enum class L2Hint : uint64_t {
  kNormal = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL),
  kEvictFirst = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
  kEvictLast = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_LAST),
};

__device__ __forceinline__ void tma_load(void *smem, const void *map, uint64_t *bar, L2Hint hint, TmaCoord c) {
  cute::SM90_TMA_LOAD_5D::copy(map, bar, static_cast<uint64_t>(hint), smem, c.col, c.row, c.end, c.head, c.batch);
}

// Into L2.
__device__ __forceinline__ void tma_prefetch(const void *map, TmaCoord c) {
  cute::SM90_TMA_LOAD_5D::PREFETCH::copy(map, c.col, c.row, c.end, c.head, c.batch);
}

__device__ __forceinline__ void tma_store(const void *map, const void *smem, TmaCoord c) {
  cute::SM90_TMA_STORE_5D::copy(map, smem, c.col, c.row, c.end, c.head, c.batch);
}

__device__ __forceinline__ void tma_store_commit_group() { cute::tma_store_arrive(); }

// Waits until the shared memory of this thread's committed stores has been read.
__device__ __forceinline__ void tma_store_wait_read() { cute::tma_store_wait<0>(); }

// An instruction that is fetched and run whatever the condition is, unlike one that is branched around.
__device__ __forceinline__ void store_if(bool condition, void *global, uint32_t value) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %0, 0;\n@p st.global.b32 [%1], %2;\n}" ::"r"(static_cast<int>(condition)),
      "l"(global), "r"(value)
      : "memory");
}

__device__ __forceinline__ void store(void *global, uint32_t value, L2Hint hint) {
  asm volatile("st.global.L2::cache_hint.b32 [%0], %1, %2;" ::"l"(global), "r"(value), "l"(static_cast<uint64_t>(hint))
               : "memory");
}

__device__ __forceinline__ void prefetch(const void *global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

__device__ __forceinline__ void prefetch_tensormap(const void *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Two bfloat16 values times two.
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// Four 8x8 matrices of 16-bit values into registers, one of each thread's pairs to a register; each lane names the
// shared-memory address of one row.
__device__ __forceinline__ void ldmatrix_x4(uint32_t row, uint32_t *out) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// The same, each of them transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t row, uint32_t *out) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// Such a matrix in registers, transposed.
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t x) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(x));
  return out;
}

// Four 8x8 matrices of 16-bit values from registers; each lane names the shared-memory address of one row.
__device__ __forceinline__ void stmatrix_x4(void *row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  cute::SM90_U32x4_STSM_N::copy(r0, r1, r2, r3, *static_cast<cute::uint128_t *>(row));
}

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A mask of the lowest `count` bits; of all of them from 32 on.
__device__ __forceinline__ uint32_t low_bits(uint32_t count) {
  uint32_t bits;
  asm("bmsk.clamp.b32 %0, 0, %1;" : "=r"(bits) : "r"(count));
  return bits;
}

// `x`, but to the compiler not known before `before` is. `zero` is 0 and must come from where it does not know it.
__device__ __forceinline__ float after(float before, float x, uint32_t zero) {
  return __uint_as_float(__float_as_uint(x) | (__float_as_uint(before) & zero));
}

__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace flash3::device::ptx
