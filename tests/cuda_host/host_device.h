// Host implementation of csrc/cuda/device.cuh: what a kernel may call, on the blocks of host_block.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_block.h"
#include "types.h"

#define PUMA_DEVICE inline

// The build decides which of the two kinds of tensor-core products the kernels run with.
#ifndef PUMA_WARPGROUPS
#define PUMA_WARPGROUPS 0
#endif

namespace puma::dev {

inline constexpr bool kHasWarpgroups = PUMA_WARPGROUPS != 0;

namespace host {

inline void require_aligned(const void* address, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) fail("misaligned access to global memory");
}

inline float half_to_float(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  float v;
  if (exponent == 31) {
    v = mantissa != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    v = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    v = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (h & 0x8000) != 0 ? -v : v;
}

inline uint16_t float_to_half(float f) {
  const auto sign = static_cast<uint16_t>(std::signbit(f) ? 0x8000 : 0);
  if (std::isnan(f)) return 0x7fff;
  const float a = std::fabs(f);
  if (a >= 65520.0f) return sign | 0x7c00;
  // Units of the last place of the result; nearbyint rounds to nearest even.
  const int exponent = a < std::ldexp(1.0f, -14) ? -14 : std::ilogb(a);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(a, 10 - exponent)));
  return static_cast<uint16_t>(sign + units + (static_cast<uint32_t>(exponent + 14) << 10));
}

inline uint16_t float_to_bfloat(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (std::isnan(f)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float operand(bf16, uint32_t word, int half) {
  const uint32_t bits = (half != 0 ? word >> 16 : word & 0xffffu) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline float operand(f16, uint32_t word, int half) {
  return half_to_float(static_cast<uint16_t>(half != 0 ? word >> 16 : word & 0xffffu));
}

// d (16 x 8) += a (16 x k) b (k x 8), one rounding at the end.
template <int kDepth>
inline void multiply(const float (&a)[16][kDepth], const float (&b)[kDepth][8], const Words* in, Words* out) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float d;
      std::memcpy(&d, &in[lane].word[i], 4);
      double sum = d;
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      d = static_cast<float>(sum);
      std::memcpy(&out[lane].word[i], &d, 4);
    }
  }
}

template <typename Compute>
inline void mma(const char* name, float (&d)[4], const uint32_t (&ab)[6], const Compute& compute) {
  Words mine{};
  std::memcpy(mine.word, d, 16);
  std::memcpy(mine.word + 4, ab, 24);
  const Words result = block().collective(name, mine, compute);
  std::memcpy(d, result.word, 16);
}

}  // namespace host

inline int thread() { return host::block().thread(); }
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
inline int threads() { return host::block().threads(); }
inline int64_t block() { return host::block().block(); }
inline int64_t blocks() { return host::block().blocks(); }
inline void sync_block() { host::block().barrier(); }
inline void sync_first_threads(int count) { host::block().partial_barrier(count); }
inline void wait_for_previous_kernel() { host::block().wait_for_previous_kernel(); }
inline void let_next_kernel_begin() {}
inline char* shared_memory() { return host::block().shared(); }

inline uint32_t ballot(bool predicate) {
  host::Words mine{};
  mine.word[0] = predicate ? 1 : 0;
  return host::block()
      .collective("ballot", mine,
                  [](const host::Words* in, host::Words* out) {
                    uint32_t votes = 0;
                    for (int i = 0; i < 32; ++i) votes |= in[i].word[0] << i;
                    for (int i = 0; i < 32; ++i) out[i].word[0] = votes;
                  })
      .word[0];
}
inline void sync_warp() { ballot(true); }
inline int popcount(uint32_t bits) { return __builtin_popcount(bits); }

template <typename T>
inline T shuffle_xor(T value, int mask) {
  host::Words mine{};
  std::memcpy(mine.word, &value, sizeof(T));
  const host::Words result =
      host::block().collective("shuffle", mine, [mask](const host::Words* in, host::Words* out) {
        for (int i = 0; i < 32; ++i) out[i] = in[i ^ mask];
      });
  std::memcpy(&value, result.word, sizeof(T));
  return value;
}

inline int first_lane(int value) {
  host::Words mine{};
  std::memcpy(mine.word, &value, sizeof(int));
  const host::Words result =
      host::block().collective("first_lane", mine, [](const host::Words* in, host::Words* out) {
        for (int i = 0; i < 32; ++i) out[i] = in[0];
      });
  std::memcpy(&value, result.word, sizeof(int));
  return value;
}

template <typename T>
inline T load_shared(const T* address) {
  host::block().read(address, sizeof(T));
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <typename T>
inline void store_shared(T* address, T value) {
  host::block().write(address, sizeof(T));
  std::memcpy(address, &value, sizeof(T));
}

// Reads both ends, so that the address sanitizer sees what lies outside.
inline void prefetch(const void* address, int bytes) {
  host::require_aligned(address, 16);
  if (bytes <= 0 || bytes % 16 != 0) host::fail("a piece to be prefetched is not a multiple of 16 bytes");
  const auto* piece = static_cast<const volatile char*>(address);
  static_cast<void>(piece[0]);
  static_cast<void>(piece[bytes - 1]);
}

inline int add_global(int32_t* counter, int value) {
  host::block().write_global();
  const int before = *counter;
  *counter += value;
  return before;
}

inline Bytes16 load_global16(const void* address) {
  host::require_aligned(address, 16);
  Bytes16 value;
  std::memcpy(&value, address, 16);
  return value;
}
inline Bytes16 load_written16(const void* address) { return load_global16(address); }
inline void store_global16(void* address, Bytes16 value) {
  host::block().write_global();
  host::require_aligned(address, 16);
  std::memcpy(address, &value, 16);
}
inline void store_global8(void* address, float a, float b) {
  host::block().write_global();
  host::require_aligned(address, 8);
  const float pair[2] = {a, b};
  std::memcpy(address, pair, 8);
}

inline void copy_async16(void* shared, const void* global, bool inside = true) {
  host::require_aligned(global, 16);
  alignas(16) static const char zeros[16] = {};
  if (!inside) global = zeros;
  host::block().copy_async(static_cast<char*>(shared), static_cast<const char*>(global));
}
inline void copy_async_commit() { host::block().commit(); }
inline void copy_async_wait(int pending) {
  if (pending < 0 || pending > 4) host::fail("waiting leaves 0 to 4 groups under way");
  host::block().wait_copies(static_cast<size_t>(pending));
}

// A barrier counts the phases whose piece has been waited for: there, as late as possible, the piece lands.
struct BulkBarrier {
  uint64_t state;
};
inline void bulk_barrier_init(BulkBarrier* barrier) { host::block().bulk_barrier(barrier); }
inline void bulk_barriers_are_set_up() {}
inline void see_ordinary_writes() {}
inline void bulk_copy(void* shared, const void* global, int bytes, BulkBarrier* barrier) {
  host::require_aligned(global, 16);
  host::block().bulk_copy(static_cast<char*>(shared), static_cast<const char*>(global), bytes, barrier);
}
inline void bulk_wait(BulkBarrier* barrier, int parity) { host::block().bulk_wait(barrier, parity); }

inline Bytes16 load_matrices_transposed(const void* row) {
  host::block().read(row, 16);
  host::Words mine{};
  std::memcpy(mine.word, row, 16);
  const host::Words result =
      host::block().collective("ldmatrix", mine, [](const host::Words* in, host::Words* out) {
        const auto element = [&](int matrix, int r, int column) {
          return in[matrix * 8 + r].word[column / 2] >> (16 * (column % 2)) & 0xffffu;
        };
        for (int i = 0; i < 32; ++i) {
          for (int m = 0; m < 4; ++m) {
            out[i].word[m] = element(m, i % 4 * 2, i / 4) | element(m, i % 4 * 2 + 1, i / 4) << 16;
          }
        }
      });
  Bytes16 value;
  std::memcpy(&value, result.word, 16);
  return value;
}

template <typename T>
inline void mma_16x8x16(T type, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                        uint32_t b1) {
  host::mma("mma16816", d, {a0, a1, a2, a3, b0, b1}, [type](const host::Words* in, host::Words* out) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t* w = in[lane].word + 4;
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < 2; ++e) {
        a[g][2 * t + e] = host::operand(type, w[0], e);
        a[g + 8][2 * t + e] = host::operand(type, w[1], e);
        a[g][2 * t + 8 + e] = host::operand(type, w[2], e);
        a[g + 8][2 * t + 8 + e] = host::operand(type, w[3], e);
        b[2 * t + e][g] = host::operand(type, w[4], e);
        b[2 * t + 8 + e][g] = host::operand(type, w[5], e);
      }
    }
    host::multiply<16>(a, b, in, out);
  });
}

inline uint32_t here(uint32_t v) { return v; }
inline float bits_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t float_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

inline void mma_16x8x8_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                            uint32_t b1) {
  host::mma("mma1688", d, {a0, a1, a2, a3, b0, b1}, [](const host::Words* in, host::Words* out) {
    float a[16][8], b[8][8];
    const auto tf32 = [](uint32_t bits) { return bits_float(bits & 0xffffe000u); };
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t* w = in[lane].word + 4;
      const int g = lane / 4, t = lane % 4;
      a[g][t] = tf32(w[0]);
      a[g + 8][t] = tf32(w[1]);
      a[g][t + 4] = tf32(w[2]);
      a[g + 8][t + 4] = tf32(w[3]);
      b[t][g] = tf32(w[4]);
      b[t + 4][g] = tf32(w[5]);
    }
    host::multiply<8>(a, b, in, out);
  });
}

inline float to_arithmetic(float v) { return v; }
inline double to_arithmetic(double v) { return v; }
inline float to_arithmetic(bf16 v) { return host::operand(bf16{}, v.bits, 0); }
inline float to_arithmetic(f16 v) { return host::half_to_float(v.bits); }
inline void from_arithmetic(float v, float& out) { out = v; }
inline void from_arithmetic(double v, double& out) { out = v; }
inline void from_arithmetic(float v, bf16& out) { out.bits = host::float_to_bfloat(v); }
inline void from_arithmetic(float v, f16& out) { out.bits = host::float_to_half(v); }
inline uint32_t pack_pair(bf16, float low, float high) {
  return host::float_to_bfloat(low) | static_cast<uint32_t>(host::float_to_bfloat(high)) << 16;
}
inline uint32_t pack_pair(f16, float low, float high) {
  return host::float_to_half(low) | static_cast<uint32_t>(host::float_to_half(high)) << 16;
}
inline float exponential(float v) { return std::exp(v); }
inline double exponential(double v) { return std::exp(v); }
inline float square_root(float v) { return std::sqrt(v); }
inline double square_root(double v) { return std::sqrt(v); }

// Hopper's products of four warps, see warpgroup.cuh. Each warp's rows depend on its own part of a only, so a warp
// computes its 16 rows; that all four come along is checked.
namespace host {

// The operands are looked at once per warp, not element by element.
inline void read_by_warp(const void* address, int bytes) {
  if (block().thread() % 32 == 0) block().begin_reading(address, bytes);
}
inline uint16_t half_at(const char* address) {
  uint16_t bits;
  std::memcpy(&bits, address, 2);
  return bits;
}

// One warp's 16 x 8 tiles: d += a (16 x 16) * b; b(k, n) gives an element.
template <typename T, int kTiles, typename B>
inline void multiply_rows(T type, float (&d)[kTiles][4], const float (&a)[2][16], const B& b) {
  for (int j = 0; j < kTiles; ++j) {
    for (int i = 0; i < 4; ++i) {
      double sum = d[j][i];
      const int column = j * 8 + lane() % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[i / 2][k]) * operand(type, b(k, column), 0);
      d[j][i] = static_cast<float>(sum);
    }
  }
}

}  // namespace host

inline void warpgroup_begin() { host::block().warpgroup("begin"); }
template <int kTiles>
inline void warpgroup_begin(float (&)[kTiles][4]) {
  warpgroup_begin();
}
inline void warpgroup_commit() { host::block().warpgroup("commit"); }
template <int kTiles>
inline void warpgroup_wait(float (&)[kTiles][4]) {
  host::block().warpgroup("wait");
  host::block().end_reading();
}
template <int kTiles>
inline void warpgroup_end(float (&d)[kTiles][4]) {
  warpgroup_commit();
  warpgroup_wait(d);
}
inline void publish_operands() { host::block().publish(); }

template <typename T, int kTiles>
inline void warpgroup_product(T type, float (&d)[kTiles][4], const uint32_t (&a)[4], const Bytes16* shared, int offset,
                              int all_tiles, bool accumulate) {
  // The pairs of rows lane / 4 and lane / 4 + 8, from the fragments of the four lanes that hold them.
  host::Words mine{};
  std::memcpy(mine.word, a, sizeof(a));
  const host::Words pairs =
      host::block().collective("warpgroup product", mine, [](const host::Words* in, host::Words* out) {
        constexpr int kWordOf[4] = {0, 2, 1, 3};  // row, k: (g, low), (g, high), (g + 8, low), (g + 8, high)
        for (int i = 0; i < 32; ++i) {
          for (int w = 0; w < 4; ++w) {
            for (int t = 0; t < 4; ++t) out[i].word[4 * w + t] = in[i / 4 * 4 + t].word[kWordOf[w]];
          }
        }
      });
  float rows[2][16];
  for (int h = 0; h < 2; ++h) {
    for (int k = 0; k < 16; ++k) rows[h][k] = host::operand(type, pairs.word[8 * h + k / 2], k % 2);
  }
  if (!accumulate) std::memset(d, 0, sizeof(d));
  const char* cores = reinterpret_cast<const char*>(shared) + offset;
  for (int high = 0; high < 2; ++high) host::read_by_warp(cores + high * all_tiles * 128, kTiles * 128);
  host::multiply_rows(type, d, rows, [&](int k, int n) -> uint32_t {
    return host::half_at(cores + k / 8 * (all_tiles * 128) + n / 8 * 128 + n % 8 * 16 + k % 8 * 2);
  });
  host::block().warpgroup("product");
}

template <typename T, int kTiles>
inline void warpgroup_product_transposed(T type, float (&d)[kTiles][4], const void* a, const void* b, int offset,
                                         int b_block) {
  a = static_cast<const char*>(a) + offset;
  b = static_cast<const char*>(b) + offset;
  for (const void* operand : {a, b}) {
    if ((static_cast<const char*>(operand) - shared_memory()) % 1024 != 0) {
      host::fail("a swizzled operand does not begin at a multiple of 1024 bytes");
    }
  }
  const auto element = [](const void* base, int block_bytes, int k, int column) -> uint32_t {
    const int unit = column % 64 / 8;
    const char* row = static_cast<const char*>(base) + column / 64 * block_bytes + k * 128;
    return host::half_at(row + (unit ^ k % 8) * 16 + column % 8 * 2);
  };
  host::read_by_warp(a, 16 * 128);
  for (int block = 0; block < kTiles / 8; ++block) {
    host::read_by_warp(static_cast<const char*>(b) + block * b_block, 16 * 128);
  }
  float rows[2][16];
  for (int h = 0; h < 2; ++h) {
    for (int k = 0; k < 16; ++k) {
      rows[h][k] = host::operand(type, element(a, 0, k, warp() % 4 * 16 + lane() / 4 + 8 * h), 0);
    }
  }
  host::multiply_rows(type, d, rows, [&](int k, int n) { return element(b, b_block, k, n); });
  host::block().warpgroup("product");
}

}  // namespace puma::dev
