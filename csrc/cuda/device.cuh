// The thin layer the kernels are written against: threads, barriers, votes, memory accesses, tensor-core products.
// On the device each function is an instruction or two. The tests replace this file by a host implementation that runs
// the same kernels on the CPU with one fiber per thread (PUMA_HOST_EXECUTION), so kernels use nothing outside of it.
#pragma once

#include "types.h"

#ifdef PUMA_HOST_EXECUTION
#include "host_device.h"
#else

#define PUMA_DEVICE __device__ __forceinline__

namespace puma::dev {

// Whether this code may use warpgroup.cuh. False in code for the host, which must not depend on it.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWarpgroups = true;
#else
inline constexpr bool kHasWarpgroups = false;
#endif

inline constexpr unsigned kFullWarp = 0xffffffffu;

PUMA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
PUMA_DEVICE int lane() { return static_cast<int>(threadIdx.x) & 31; }
PUMA_DEVICE int warp() { return static_cast<int>(threadIdx.x) >> 5; }
PUMA_DEVICE int threads() { return static_cast<int>(blockDim.x); }
PUMA_DEVICE int64_t block() {  // read anew each time: kept, it costs registers where there are none left
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}
PUMA_DEVICE int64_t blocks() { return gridDim.x; }

PUMA_DEVICE void sync_block() { __syncthreads(); }
// A barrier for the block's first `count` threads, whole warps; the others must not come.
PUMA_DEVICE void sync_first_threads(int count) { asm volatile("bar.sync 1, %0;" ::"r"(count) : "memory"); }

// Programmatic dependent launch (sm_90). A kernel launched as dependent may begin before the one in front of it has
// ended: before wait_for_previous_kernel(), which returns when that one's writes are visible, it writes nothing and
// reads nothing that one writes.
PUMA_DEVICE void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PUMA_DEVICE void let_next_kernel_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

PUMA_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(kFullWarp, predicate); }
// Reads of shared memory behind it are not made in front of it.
PUMA_DEVICE void sync_warp() { __syncwarp(); }
PUMA_DEVICE int popcount(uint32_t bits) { return __popc(bits); }
template <typename T>
PUMA_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}
// Lane 0's value.
PUMA_DEVICE int first_lane(int value) { return __shfl_sync(kFullWarp, value, 0); }

// Dynamic shared memory of the block.
PUMA_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char puma_shared_memory[];
  return puma_shared_memory;
}

template <typename T>
PUMA_DEVICE T load_shared(const T* address) {
  return *address;
}
template <typename T>
PUMA_DEVICE void store_shared(T* address, T value) {
  *address = value;
}
template <>
PUMA_DEVICE Bytes16 load_shared<Bytes16>(const Bytes16* address) {
  const uint4 v = *reinterpret_cast<const uint4*>(address);
  return {{v.x, v.y, v.z, v.w}};
}
template <>
PUMA_DEVICE void store_shared<Bytes16>(Bytes16* address, Bytes16 v) {
  *reinterpret_cast<uint4*>(address) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// Brings a piece, of a multiple of 16 bytes, into the level 2 cache in the background (sm_90). Nobody can see that, so
// it may also come before wait_for_previous_kernel.
PUMA_DEVICE void prefetch([[maybe_unused]] const void* address, [[maybe_unused]] int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#endif
}

// Adds to a counter that blocks share and returns what it was.
PUMA_DEVICE int add_global(int32_t* counter, int value) { return atomicAdd(counter, value); }

// Global memory that no thread writes during the kernel.
PUMA_DEVICE Bytes16 load_global16(const void* address) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(address));
  return {{v.x, v.y, v.z, v.w}};
}
// The same where the kernel in front may have written it.
PUMA_DEVICE Bytes16 load_written16(const void* address) {
  const uint4 v = *reinterpret_cast<const uint4*>(address);
  return {{v.x, v.y, v.z, v.w}};
}
PUMA_DEVICE void store_global16(void* address, Bytes16 v) {
  *reinterpret_cast<uint4*>(address) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}
PUMA_DEVICE void store_global8(void* address, float a, float b) {
  *reinterpret_cast<float2*>(address) = make_float2(a, b);
}

// 16 bytes from global to shared memory, in the background, or zeros if not `inside`: then the address may be anything
// that is a multiple of 16 (PTX ISA, cp.async: no bytes are read from it). Visible to this thread after
// copy_async_wait, to the block after a barrier behind it.
PUMA_DEVICE void copy_async16(void* shared, const void* global, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(inside ? 16 : 0)
               : "memory");
}
PUMA_DEVICE void copy_async16(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
PUMA_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` (0 to 4) of this thread's newest groups are still under way.
PUMA_DEVICE void copy_async_wait(int pending) {
  switch (pending) {  // the instruction takes a constant
    case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
  }
}

// Bulk copies (sm_90): one thread copies a whole piece, of a multiple of 16 bytes; a barrier in shared memory completes
// a phase when the piece of that phase has arrived.
struct BulkBarrier {
  uint64_t state;
};
PUMA_DEVICE void bulk_barrier_init(BulkBarrier* barrier) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
}
// By the thread that has set them up, in front of a barrier of the block.
PUMA_DEVICE void bulk_barriers_are_set_up() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// What ordinary accesses have written to global memory becomes visible to the bulk copies that follow.
PUMA_DEVICE void see_ordinary_writes() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
PUMA_DEVICE void bulk_copy(void* shared, const void* global, int bytes, BulkBarrier* barrier) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t arrived = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(global), "r"(bytes), "r"(arrived)
               : "memory");
}
// Until the phase with this parity, 0 for the first, is complete.
PUMA_DEVICE void bulk_wait(BulkBarrier* barrier, int parity) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(address),
      "r"(parity)
      : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8. Word w of lane i holds
// elements (2 * (i % 4), i / 4) and (2 * (i % 4) + 1, i / 4) of matrix w.
PUMA_DEVICE Bytes16 load_matrices_transposed(const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  Bytes16 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.word[0]), "=r"(r.word[1]), "=r"(r.word[2]), "=r"(r.word[3])
               : "r"(address)
               : "memory");
  return r;
}

// d += a (16 x 16) * b (16 x 8); fragments as PTX defines them for mma.m16n8k16.
PUMA_DEVICE void mma_16x8x16(bf16, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                             uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
PUMA_DEVICE void mma_16x8x16(f16, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                             uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// d += a (16 x 8) * b (8 x 8) in TF32: of each 32-bit operand the hardware reads the upper 19 bits.
PUMA_DEVICE void mma_16x8x8_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                 uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The value, which the compiler may not compute with any earlier.
PUMA_DEVICE uint32_t here(uint32_t v) {
  asm volatile("" : "+r"(v));
  return v;
}
PUMA_DEVICE uint32_t float_bits(float v) { return __float_as_uint(v); }
PUMA_DEVICE float bits_float(uint32_t v) { return __uint_as_float(v); }

// Rounding to nearest even; NaN stays NaN.
PUMA_DEVICE float to_arithmetic(float v) { return v; }
PUMA_DEVICE double to_arithmetic(double v) { return v; }
PUMA_DEVICE float to_arithmetic(bf16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }
PUMA_DEVICE float to_arithmetic(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
PUMA_DEVICE void from_arithmetic(float v, float& out) { out = v; }
PUMA_DEVICE void from_arithmetic(double v, double& out) { out = v; }
PUMA_DEVICE void from_arithmetic(float v, bf16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
PUMA_DEVICE void from_arithmetic(float v, f16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

// Two elements in one word, the first in the lower half.
PUMA_DEVICE uint32_t pack_pair(bf16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
PUMA_DEVICE uint32_t pack_pair(f16, float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

PUMA_DEVICE float exponential(float v) { return expf(v); }
PUMA_DEVICE double exponential(double v) { return exp(v); }
PUMA_DEVICE float square_root(float v) { return sqrtf(v); }
PUMA_DEVICE double square_root(double v) { return sqrt(v); }

}  // namespace puma::dev

#include "warpgroup.cuh"

#endif  // PUMA_HOST_EXECUTION
