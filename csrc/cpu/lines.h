// Memory that begins with a cache line, so that vectors and rows of tiles do not lie in two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace puma {

constexpr int64_t kLineBytes = 64;

// Keeps where the memory begins: the allocator's own alignment is to be had faster than that of a line. So a pointer of
// Lines must not be reset to other memory.
struct LineDelete {
  void* begin = nullptr;
  void operator()(const void*) const { ::operator delete(begin); }
};
template <class T>
using Lines = std::unique_ptr<T[], LineDelete>;

// Uninitialised: every element is written before it is read. Null for none.
template <class T>
Lines<T> lines(int64_t elements) {
  if (elements == 0) return nullptr;
  const size_t bytes = static_cast<size_t>(elements) * sizeof(T);
  size_t room = bytes + kLineBytes;
  void* const begin = ::operator new(room);
  void* first = begin;
  std::align(kLineBytes, bytes, first, room);
  return Lines<T>(static_cast<T*>(first), LineDelete{begin});
}

template <class T>
Lines<T> zero_lines(int64_t elements) {
  Lines<T> memory = lines<T>(elements);
  if (elements > 0) std::memset(static_cast<void*>(memory.get()), 0, static_cast<size_t>(elements) * sizeof(T));
  return memory;
}

}  // namespace puma
