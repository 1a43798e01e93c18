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

constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512_vnni", "amx"};

// The matrix unit, with products of bfloat16. Its registers are many: the system gives them to those who ask.
bool has_amx() {
#if PUMA_HAS_AMX
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") &&
      syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

InstructionSet best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512vnni")) return InstructionSet::avx512;
    return has_amx() ? InstructionSet::amx : InstructionSet::avx512_vnni;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
  return InstructionSet::portable;
}

InstructionSet wanted() {
  const char* const name = std::getenv("PUMA_CPU_CAPABILITY");
  if (name == nullptr || *name == '\0') return best();
  for (int i = 0; i <= static_cast<int>(best()); ++i) {
    if (std::string(name) == kNames[i]) return static_cast<InstructionSet>(i);
  }
  throw std::runtime_error(
      "PUMA_CPU_CAPABILITY must be default, avx2, avx512, avx512_vnni or amx and no more than this machine has, "
      "which is " + std::string(kNames[static_cast<int>(best())]) + "; got " + name);
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = wanted();
  return chosen;
}

const char* cpu_capability() { return kNames[static_cast<int>(instruction_set())]; }

}  // namespace puma
