#include "simd.h"

#if PUMA_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace puma {
namespace {

constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

#if defined(__x86_64__)
bool has_bf16() {
#if PUMA_HAS_BF16
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

// The matrix unit, with products of bfloat16.
bool has_amx() {
#if PUMA_HAS_AMX
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}
#endif

// Its registers are many: the system gives them to processes that ask. Those who will not use them should not, because
// afterwards the system refuses small stacks for signals.
bool amx_is_granted() {
#if PUMA_HAS_AMX
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// Of this machine.
InstructionSet best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512vnni")) return InstructionSet::avx512;
    if (!has_bf16()) return InstructionSet::avx512_vnni;
    return has_amx() ? InstructionSet::amx : InstructionSet::avx512_bf16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
  return InstructionSet::portable;
}

// What runs where none is named. Products of pairs of bfloat16 run at twice the rate of float32 on AMD's processors, on
// Intel's at half of it.
InstructionSet usual(InstructionSet most) {
  if (most < InstructionSet::avx512_bf16 || (most == InstructionSet::amx && amx_is_granted())) return most;
#if defined(__x86_64__)
  if (__builtin_cpu_is("amd")) return InstructionSet::avx512_bf16;
#endif
  return InstructionSet::avx512_vnni;
}

InstructionSet wanted() {
  const char* const name = std::getenv("PUMA_CPU_CAPABILITY");
  const InstructionSet most = best();
  if (name == nullptr || *name == '\0') return usual(most);
  for (int i = 0; i <= static_cast<int>(most); ++i) {
    if (std::string(name) != kNames[i]) continue;
    const auto named = static_cast<InstructionSet>(i);
    if (named == InstructionSet::amx && !amx_is_granted()) {
      throw std::runtime_error("PUMA_CPU_CAPABILITY is amx, but the system refuses the registers of the matrix unit");
    }
    return named;
  }
  throw std::runtime_error(
      "PUMA_CPU_CAPABILITY must be default, avx2, avx512, avx512_vnni, avx512_bf16 or amx and no more than this "
      "machine has, which is " + std::string(kNames[static_cast<int>(most)]) + "; got " + name);
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = wanted();
  return chosen;
}

const char* cpu_capability() { return kNames[static_cast<int>(instruction_set())]; }

}  // namespace puma
