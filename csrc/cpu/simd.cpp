#include "simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace puma {
namespace {

constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512_vnni"};

InstructionSet best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512vnni") ? InstructionSet::avx512_vnni : InstructionSet::avx512;
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
      "PUMA_CPU_CAPABILITY must be default, avx2, avx512 or avx512_vnni and no more than this machine has, which is " +
      std::string(kNames[static_cast<int>(best())]) + "; got " + name);
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = wanted();
  return chosen;
}

const char* cpu_capability() { return kNames[static_cast<int>(instruction_set())]; }

}  // namespace puma
