// What loops written with GCC's vector extension share. Vectors wider than the default instruction set's never cross a
// call, so -Wpsabi has nothing to warn of.
#pragma once

#include <cstdint>

#pragma GCC diagnostic ignored "-Wpsabi"

#define PUMA_INLINE inline __attribute__((always_inline))
// Behind a lambda's parameters.
#define PUMA_LAMBDA_INLINE __attribute__((always_inline))
#define PUMA_UNROLL _Pragma("GCC unroll 16")
// The vector is read from memory once, not with each use. clang accepts no vector here that is wider than those of the
// function's own target, whatever it is inlined into.
#if defined(__x86_64__) && !defined(__clang__)
#define PUMA_IN_REGISTER(vector) asm("" : "+v"(vector))
#else
#define PUMA_IN_REGISTER(vector)
#endif
#define PUMA_AVX2 __attribute__((target("avx2,fma")))
// Plain loops, too, at the full width; clang would ignore the whole attribute for that word.
#if defined(__clang__)
#define PUMA_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#else
#define PUMA_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512")))
#endif
#define PUMA_AVX512_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
// Compilers that know instructions for bfloat16.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define PUMA_HAS_BF16 1
#else
#define PUMA_HAS_BF16 0
#endif
#define PUMA_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
// Compilers that know the matrix unit, and a system that can be asked for its registers.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 19 : __GNUC__ >= 12)
#define PUMA_HAS_AMX 1
#else
#define PUMA_HAS_AMX 0
#endif
#define PUMA_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))

namespace puma {

// A vector of that many bytes; memory need not be aligned to it.
template <class T, int bytes>
struct Vector {
  typedef T type __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
};

enum class InstructionSet { portable, avx2, avx512, avx512_vnni, avx512_bf16, amx };

// The fastest that this machine has, or one that PUMA_CPU_CAPABILITY names: default, avx2, avx512,
// avx512_vnni, avx512_bf16 or amx.
InstructionSet instruction_set();

// Its name, as PUMA_CPU_CAPABILITY spells it.
const char* cpu_capability();

// Of three versions of a kernel the one to run.
template <class Kernel>
Kernel choose(Kernel portable, Kernel avx2, Kernel avx512) {
  switch (instruction_set()) {
    case InstructionSet::amx:
    case InstructionSet::avx512_bf16:
    case InstructionSet::avx512_vnni:
    case InstructionSet::avx512:
      return avx512;
    case InstructionSet::avx2:
      return avx2;
    default:
      return portable;
  }
}

// For a KERNELS(name, bytes of its vectors, attributes) that defines functions and `constexpr Kernels name`: both of them,
// and kernels(), the ones to run; without vectors there are none.
#if defined(__x86_64__)
#define PUMA_DEFINE_KERNELS(KERNELS)                                \
  KERNELS(avx2, 32, PUMA_AVX2)                                      \
  KERNELS(avx512, 64, PUMA_AVX512)                                  \
  Kernels kernels() { return choose(Kernels{}, avx2, avx512); }
#else
#define PUMA_DEFINE_KERNELS(KERNELS) \
  Kernels kernels() { return {}; }
#endif

}  // namespace puma
