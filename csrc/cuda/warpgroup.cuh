// Products of a warpgroup (four warps, 64 rows) on Hopper's tensor cores, wgmma: operand b, and a where it is not in
// registers, is read by the hardware from shared memory. Part of the thin layer of device.cuh, for code for
// sm_90a (dev::kHasWarpgroups); the tests' host_device.h stands for it on the host.
//
// All four warps call these functions together. begin() precedes the first product of a run, commit() follows
// the last one, wait() waits for the run, end() is both; until then neither accumulators nor operands are touched.
#pragma once

namespace puma::dev {

PUMA_DEVICE void warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Before a run that adds to d, which is complete by then.
template <int kTiles>
PUMA_DEVICE void warpgroup_begin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[j][i])::"memory");
  }
  warpgroup_begin();
}
PUMA_DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kTiles>
PUMA_DEVICE void warpgroup_wait(float (&d)[kTiles][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[j][i])::"memory");  // not read any earlier
  }
}
template <int kTiles>
PUMA_DEVICE void warpgroup_end(float (&d)[kTiles][4]) {
  warpgroup_commit();
  warpgroup_wait(d);
}
// What this thread has written to shared memory becomes visible to the hardware that reads operands there; a barrier
// has to follow.
PUMA_DEVICE void publish_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

namespace detail {

// PTX ISA, matrix descriptor of wgmma, of what begins `offset` bytes behind `shared`; leading and stride in bytes too.
// swizzle: 0 none, 1 of 128 bytes. Addresses in shared memory have 18 bits at most; a constant offset is one addition.
PUMA_DEVICE uint64_t descriptor(const void* shared, int offset, int leading, int stride, int swizzle) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t constant = static_cast<uint32_t>(offset >> 4) | static_cast<uint32_t>(leading >> 4) << 16;
  const uint32_t low = (address >> 4) + constant;
  const uint32_t high = static_cast<uint32_t>(stride >> 4) | static_cast<uint32_t>(swizzle) << 30;
  return static_cast<uint64_t>(high) << 32 | low;
}

// The types have the instructions' names of them.
#define PUMA_WARPGROUP_PRODUCTS(T)                                                                                     \
  PUMA_DEVICE void product(T, float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {                \
    asm volatile(                                                                                                      \
        "{\n.reg .pred more;\nsetp.ne.b32 more, %69, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." #T "." #T " "                                                   \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                             \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                             \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                            \
        "{%64, %65, %66, %67}, %68, more, 1, 1, 0;\n}"                                                                 \
        :                                                                                                              \
          "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                                                  \
          "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                                                  \
          "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                                                  \
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                                                  \
          "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                                                  \
          "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                                                  \
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                                                  \
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),                                                  \
          "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),                                                  \
          "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),                                                  \
          "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),                                              \
          "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),                                              \
          "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),                                              \
          "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),                                              \
          "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),                                              \
          "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate ? 1 : 0));                                \
  }                                                                                                                    \
  PUMA_DEVICE void product(T, float (&d)[16][4], uint64_t a, uint64_t b) {                                             \
    asm volatile(                                                                                                      \
        "{\n.reg .pred more;\nsetp.ne.b32 more, %66, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." #T "." #T " "                                                   \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                             \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                             \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                            \
        "%64, %65, more, 1, 1, 1, 1;\n}"                                                                               \
        :                                                                                                              \
          "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                                                  \
          "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                                                  \
          "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                                                  \
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                                                  \
          "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                                                  \
          "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                                                  \
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                                                  \
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),                                                  \
          "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),                                                  \
          "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),                                                  \
          "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),                                              \
          "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),                                              \
          "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),                                              \
          "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),                                              \
          "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),                                              \
          "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])                                               \
        : "l"(a), "l"(b), "n"(1));                                                                                     \
  }                                                                                                                    \
  PUMA_DEVICE void product(T, float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {                 \
    asm volatile(                                                                                                      \
        "{\n.reg .pred more;\nsetp.ne.b32 more, %37, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." #T "." #T " "                                                    \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                            \
        "{%32, %33, %34, %35}, %36, more, 1, 1, 0;\n}"                                                                 \
        :                                                                                                              \
          "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                                                  \
          "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                                                  \
          "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                                                  \
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                                                  \
          "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                                                  \
          "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                                                  \
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                                                  \
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate ? 1 : 0));                                \
  }                                                                                                                    \
  PUMA_DEVICE void product(T, float (&d)[4][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {                 \
    asm volatile(                                                                                                      \
        "{\n.reg .pred more;\nsetp.ne.b32 more, %21, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n32k16.f32." #T "." #T " "                                                    \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "                                     \
        "{%16, %17, %18, %19}, %20, more, 1, 1, 0;\n}"                                                                 \
        :                                                                                                              \
          "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                                                  \
          "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                                                  \
          "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                                                  \
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3])                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate ? 1 : 0));                                \
  }                                                                                                                    \
  PUMA_DEVICE void product(T, float (&d)[8][4], uint64_t a, uint64_t b) {                                              \
    asm volatile(                                                                                                      \
        "{\n.reg .pred more;\nsetp.ne.b32 more, %34, 0;\n"                                                             \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." #T "." #T " "                                                    \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                            \
        "%32, %33, more, 1, 1, 1, 1;\n}"                                                                               \
        :                                                                                                              \
          "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),                                                  \
          "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),                                                  \
          "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),                                                  \
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),                                                  \
          "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),                                                  \
          "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),                                                  \
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),                                                  \
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])                                                   \
        : "l"(a), "l"(b), "n"(1));                                                                                     \
  }

PUMA_WARPGROUP_PRODUCTS(bf16)
PUMA_WARPGROUP_PRODUCTS(f16)
#undef PUMA_WARPGROUP_PRODUCTS

}  // namespace detail

// d (64 x 8 kTiles) = [d +] a (64 x 16) * b (16 x 8 kTiles). a: this lane's fragment, as of mma.m16n8k16 for its warp's
// 16 rows. b, `offset` bytes behind `shared`: "K-major without swizzle": cores of 8 columns x 8 k, 128 bytes each, one
// behind the other for k 0 to 7; those of k 8 to 15 lie all_tiles cores behind.
template <typename T, int kTiles>
PUMA_DEVICE void warpgroup_product(T type, float (&d)[kTiles][4], const uint32_t (&a)[4], const Bytes16* shared,
                                   int offset, int all_tiles, bool accumulate) {
  detail::product(type, d, a, detail::descriptor(shared, offset, all_tiles * 128, 128, 0), accumulate);
}

// d (64 x 8 kTiles) += a^T * b, a (16 x 64) and b (16 x 8 kTiles) in shared memory, `offset` bytes behind the given
// addresses: rows of 64 elements in 128 bytes, of which unit u of row k lies at u ^ (k % 8); a second block of 64
// columns of b lies b_block bytes behind the first. Both begin at multiples of 1024 bytes.
template <typename T, int kTiles>
PUMA_DEVICE void warpgroup_product_transposed(T type, float (&d)[kTiles][4], const void* a, const void* b, int offset,
                                              int b_block) {
  detail::product(type, d, detail::descriptor(a, offset, b_block, 1024, 1),
                  detail::descriptor(b, offset, b_block, 1024, 1));
}

}  // namespace puma::dev
