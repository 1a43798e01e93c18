// Memory that begins with a cache line, so that vectors and rows of tiles do not lie in two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace puma {

constexpr std::align_val_t kLine{64};

struct LineDelete {
  void operator()(void* memory) const { ::operator delete(memory, kLine); }
};
template <class T>
using Lines = std::unique_ptr<T[], LineDelete>;

// Uninitialised: every element is written before it is read. Null for none.
template <class T>
Lines<T> lines(int64_t elements) {
  if (elements == 0) return nullptr;
  return Lines<T>(static_cast<T*>(::operator new(static_cast<size_t>(elements) * sizeof(T), kLine)));
}

template <class T>
Lines<T> zero_lines(int64_t elements) {
  Lines<T> memory = lines<T>(elements);
  if (elements > 0) std::memset(static_cast<void*>(memory.get()), 0, static_cast<size_t>(elements) * sizeof(T));
  return memory;
}

}  // namespace puma
