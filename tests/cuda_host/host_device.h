// Host implementation of csrc/cuda/device.cuh: a block's threads are fibers of one CPU thread, scheduled in an order
// drawn from a seed; a fiber runs until it meets a barrier or an operation of its whole warp. Beyond executing the
// kernels it looks for what a GPU would punish silently:
//   - a warp operation or barrier that not all threads reach (deadlock) or that lanes reach with different operations,
//   - shared memory read or written by two threads without a barrier in between, one of them writing,
//   - shared memory touched while an asynchronous copy to it is under way (copies land as late as they may),
//   - misaligned 16-byte accesses, and with the address sanitizer every access outside of a buffer.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define PUMA_DEVICE inline

namespace puma::dev {

namespace host {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "kernel error: %s\n", what);
  std::fflush(stderr);
  std::abort();
}

struct AsyncCopy {
  char* destination;
  const char* source;
};

struct Fiber {
  ucontext_t context{};
  std::vector<char> stack;
  bool done = false;
  const uint64_t* wait_counter = nullptr;  // runnable once it differs from wait_value
  uint64_t wait_value = 0;
  std::deque<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> open_group;
  void* fake_stack = nullptr;
};

struct Words {
  uint32_t word[10];
};

struct Warp {
  int arrived = 0;
  const char* operation = nullptr;
  uint64_t generation = 0;
  Words in[32];
  Words out[2][32];  // by parity of the generation: the next operation may begin before all have read
};

// Last accesses of one 4-byte word of shared memory. Epochs count barriers, from 1.
struct Shadow {
  int writer = -1, reader = -1;  // thread; reader -2: several
  uint32_t write_epoch = 0, read_epoch = 0;
  bool in_flight = false;
};

class Block {
 public:
  void run(int threads, int shared_bytes, int64_t block, int64_t blocks, uint32_t seed,
           const std::function<void()>& body) {
    threads_ = threads;
    block_ = block;
    blocks_ = blocks;
    body_ = &body;
    shared_size_ = shared_bytes;
    shared_ = static_cast<char*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128 + 128));
    std::memset(shared_, 0xff, shared_bytes);  // NaN in every type
    shadow_.assign(shared_bytes / 4 + 1, Shadow{});
    epoch_ = 1;
    barrier_generation_ = 0;
    barrier_arrived_ = 0;
    alive_ = threads;
    warps_.assign(threads / 32, Warp{});
    if (static_cast<int>(fibers_.size()) < threads) fibers_.resize(threads);
    for (int i = 0; i < threads; ++i) start(i);

    std::mt19937 random(seed);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    while (alive_ > 0) {
      bool progress = false;
      for (int i : order) {
        Fiber& fiber = *fibers_[i];
        if (fiber.done || (fiber.wait_counter != nullptr && *fiber.wait_counter == fiber.wait_value)) continue;
        progress = true;
        current_ = i;
        enter(fiber);
      }
      if (!progress) fail("deadlock: a barrier or warp operation that not all threads reach");
    }
    std::free(shared_);
  }

  int thread() const { return current_; }
  int threads() const { return threads_; }
  int64_t block() const { return block_; }
  int64_t blocks() const { return blocks_; }
  char* shared() { return shared_; }

  void barrier() {
    if (++barrier_arrived_ == alive_) {
      release_barrier();
    } else {
      wait(barrier_generation_);
    }
  }

  // All 32 lanes bring operands; the last to arrive computes all results at once.
  template <typename Compute>
  Words collective(const char* operation, const Words& mine, const Compute& compute) {
    Warp& warp = warps_[current_ / 32];
    const int lane = current_ % 32;
    if (warp.arrived == 0) warp.operation = operation;
    if (warp.operation != operation) fail("lanes of a warp meet in different operations");
    warp.in[lane] = mine;
    const uint64_t generation = warp.generation;
    if (++warp.arrived == 32) {
      compute(warp.in, warp.out[generation % 2]);
      warp.arrived = 0;
      ++warp.generation;
    } else {
      wait(warp.generation);
    }
    return warp.out[generation % 2][lane];
  }

  void copy_async(char* destination, const char* source) {
    for_words(destination, 16, [&](Shadow& s) {
      note_write(s);
      s.in_flight = true;
    });
    fibers_[current_]->open_group.push_back({destination, source});
  }
  void commit() {
    Fiber& fiber = *fibers_[current_];
    fiber.groups.push_back(std::move(fiber.open_group));
    fiber.open_group.clear();
  }
  void wait_copies(size_t pending) {
    Fiber& fiber = *fibers_[current_];
    while (fiber.groups.size() > pending) {
      for (const AsyncCopy& copy : fiber.groups.front()) {
        std::memcpy(copy.destination, copy.source, 16);
        for_words(copy.destination, 16, [&](Shadow& s) {
          s.in_flight = false;
          note_write(s);
        });
      }
      fiber.groups.pop_front();
    }
  }

  void read(const void* address, int bytes) {
    for_words(static_cast<const char*>(address), bytes, [&](Shadow& s) {
      if (s.in_flight) fail("shared memory is read while a copy to it is under way");
      if (s.write_epoch == epoch_ && s.writer != current_) {
        fail("shared memory is read without a barrier after another thread's write");
      }
      s.reader = s.read_epoch == epoch_ && s.reader != current_ ? -2 : current_;
      s.read_epoch = epoch_;
    });
  }
  void write(const void* address, int bytes) {
    for_words(static_cast<const char*>(address), bytes, [&](Shadow& s) { note_write(s); });
  }

 private:
  template <typename Function>
  void for_words(const char* address, int bytes, const Function& function) {
    const int64_t begin = address - shared_;
    if (begin < 0 || begin + bytes > shared_size_) fail("access outside of shared memory");
    if (begin % (bytes < 16 ? bytes : 16) != 0) fail("misaligned access to shared memory");
    for (int64_t w = begin / 4; w < (begin + bytes + 3) / 4; ++w) function(shadow_[w]);
  }
  void note_write(Shadow& s) {
    if (s.in_flight) fail("shared memory is written while a copy to it is under way");
    if (s.write_epoch == epoch_ && s.writer != current_) {
      fail("two threads write to shared memory without a barrier in between");
    }
    if (s.read_epoch == epoch_ && s.reader != current_) {
      fail("shared memory is written without a barrier after another thread's read");
    }
    s.writer = current_;
    s.write_epoch = epoch_;
  }

  void release_barrier() {
    barrier_arrived_ = 0;
    ++barrier_generation_;
    ++epoch_;
  }
  void wait(const uint64_t& counter) {
    Fiber& fiber = *fibers_[current_];
    fiber.wait_counter = &counter;
    fiber.wait_value = counter;
    leave(fiber, false);
    fiber.wait_counter = nullptr;
  }

  void start(int i) {
    if (fibers_[i] == nullptr) {
      fibers_[i] = std::make_unique<Fiber>();
      fibers_[i]->stack.resize(kStackBytes);
    }
    Fiber& fiber = *fibers_[i];
    fiber.done = false;
    fiber.wait_counter = nullptr;
    fiber.groups.clear();
    fiber.open_group.clear();
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::trampoline, 0);
  }
  static void trampoline();
  void run_current() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_size_);
#endif
    (*body_)();
    Fiber& fiber = *fibers_[current_];
    fiber.done = true;
    if (warps_[current_ / 32].arrived != 0) fail("a thread ends while its warp waits for it");
    --alive_;
    if (alive_ > 0 && barrier_arrived_ == alive_) release_barrier();
    leave(fiber, true);
  }
  void enter(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack.data(), fiber.stack.size());
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  }
  void leave(Fiber& fiber, [[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_stack_size_);
#endif
    swapcontext(&fiber.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
  }

  static constexpr size_t kStackBytes = 256 * 1024;

  int threads_ = 0, current_ = 0, alive_ = 0, barrier_arrived_ = 0;
  int64_t block_ = 0, blocks_ = 0, shared_size_ = 0;
  uint64_t barrier_generation_ = 0;
  uint32_t epoch_ = 1;
  char* shared_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::vector<Shadow> shadow_;
  ucontext_t scheduler_{};
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
};

inline Block& block() {
  static Block instance;
  return instance;
}
inline void Block::trampoline() { host::block().run_current(); }

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

inline Bytes16 load_global16(const void* address) {
  host::require_aligned(address, 16);
  Bytes16 value;
  std::memcpy(&value, address, 16);
  return value;
}
inline void store_global16(void* address, Bytes16 value) {
  host::require_aligned(address, 16);
  std::memcpy(address, &value, 16);
}
inline void store_global8(void* address, float a, float b) {
  host::require_aligned(address, 8);
  const float pair[2] = {a, b};
  std::memcpy(address, pair, 8);
}

inline void copy_async16(void* shared, const void* global) {
  host::require_aligned(global, 16);
  host::block().copy_async(static_cast<char*>(shared), static_cast<const char*>(global));
}
inline void copy_async_commit() { host::block().commit(); }
template <int kPending>
inline void copy_async_wait() {
  host::block().wait_copies(kPending);
}

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

}  // namespace puma::dev
