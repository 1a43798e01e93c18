// A block of CUDA threads on the host: fibers of one CPU thread, scheduled in an order drawn from a seed; a fiber runs
// until it meets a barrier or an operation of its whole warp. Beyond executing the kernels it looks for what a GPU
// would punish silently:
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
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

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
  bool waited = false;  // for the kernel in front
  std::vector<size_t> unpublished;  // words of shared memory it has written since it last published
  std::vector<std::pair<const void*, int>> under_way;  // operands in shared memory of products it has not waited for
  const uint64_t* wait_counter = nullptr;  // runnable once it differs from wait_value
  uint64_t wait_value = 0;
  std::deque<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> open_group;
  void* fake_stack = nullptr;
};

struct Words {
  uint32_t word[16];  // of one lane
};

struct Warp {
  int arrived = 0;
  const char* operation = nullptr;
  uint64_t generation = 0;
  Words in[32];
  Words out[2][32];  // by parity of the generation: the next operation may begin before all have read
};

struct Bulk {
  bool under_way = false;
  uint64_t phases = 0;
  char* destination = nullptr;
  const char* source = nullptr;
  int bytes = 0;
};

struct Group {
  int arrived = 0;
  bool products_under_way = false;
  const char* operation = nullptr;
  uint64_t generation = 0;
};

// Last accesses of one 4-byte word of shared memory. Epochs count barriers, from 1.
struct Shadow {
  int writer = -1, reader = -1;  // thread; reader -2: several
  uint32_t write_epoch = 0, read_epoch = 0;
  bool in_flight = false;
  bool published = false;  // to the hardware that reads operands from shared memory
};

class Block {
 public:
  // dependent: the kernel may begin before the one in front has ended.
  void run(int threads, int shared_bytes, int64_t block, int64_t blocks, uint32_t seed, bool dependent,
           const std::function<void()>& body) {
    threads_ = threads;
    dependent_ = dependent;
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
    partial_generation_ = 0;
    partial_arrived_ = 0;
    alive_ = threads;
    warps_.assign(threads / 32, Warp{});
    groups_.assign(threads / 128 + 1, Group{});
    bulk_.clear();
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

  // Of the first `count` threads. What they read and wrote before counts as seen by all: the others have to stay away
  // from the same shared memory.
  void partial_barrier(int count) {
    if (count % 32 != 0 || current_ >= count) fail("a barrier of the first threads is met by another thread");
    if (partial_arrived_ == 0) partial_count_ = count;
    if (partial_count_ != count) fail("threads meet in a barrier with different counts");
    if (++partial_arrived_ == count) {
      partial_arrived_ = 0;
      ++partial_generation_;
      ++epoch_;
    } else {
      wait(partial_generation_);
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

  // Four warps meet; the first of them is a multiple of four.
  void warpgroup(const char* operation) {
    Group& group = groups_[current_ / 128];
    if (group.arrived == 0) group.operation = operation;
    if (group.operation != operation) fail("the warps of a warpgroup meet in different operations");
    if (++group.arrived == 128) {
      if (group.products_under_way && operation != std::string_view("wait")) {
        fail("products begin before those in front of them were waited for");
      }
      group.products_under_way = operation == std::string_view("commit");
      group.arrived = 0;
      ++group.generation;
    } else {
      wait(group.generation);
    }
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

  // Bulk copies: each barrier has at most one piece under way, which lands when a thread first waits for it.
  void bulk_barrier(const void* barrier) {
    write(barrier, 8);
    bulk_.erase(barrier);
    bulk_[barrier] = Bulk{};
  }
  void bulk_copy(char* destination, const char* source, int bytes, const void* barrier) {
    const auto found = bulk_.find(barrier);
    if (found == bulk_.end()) fail("a bulk copy names a barrier that was not set up");
    Bulk& bulk = found->second;
    if (bulk.under_way) fail("a bulk copy begins before the one in front of it was waited for");
    if (bytes % 16 != 0) fail("a bulk copy of bytes that are not a multiple of 16");
    for_words(destination, bytes, [&](Shadow& s) {
      note_write(s);
      s.in_flight = true;
    });
    bulk = {true, bulk.phases, destination, source, bytes};
    ++bulk_begun_;
  }
  void bulk_wait(const void* barrier, int parity) {
    Bulk& bulk = bulk_.at(barrier);
    while (bulk.phases % 2 == static_cast<uint64_t>(parity)) {
      if (!bulk.under_way) {
        wait(bulk_begun_);
        continue;
      }
      std::memcpy(bulk.destination, bulk.source, static_cast<size_t>(bulk.bytes));
      for_words(bulk.destination, bulk.bytes, [&](Shadow& s) {
        s.in_flight = false;
        s.writer = -1;
        s.write_epoch = 0;  // seen by all that wait for it
        s.published = true;
      });
      bulk.under_way = false;
      ++bulk.phases;
    }
  }

  void wait_for_previous_kernel() { fibers_[current_]->waited = true; }
  void write_global() const {
    if (dependent_ && !fibers_[current_]->waited) fail("global memory is written before the kernel in front has ended");
  }
  void publish() {
    Fiber& fiber = *fibers_[current_];
    for (const size_t word : fiber.unpublished) shadow_[word].published = true;
    fiber.unpublished.clear();
  }
  // The hardware reads operands at any time up to end_reading(): looked at here and there.
  void begin_reading(const void* address, int bytes) {
    read_published(address, bytes);
    fibers_[current_]->under_way.emplace_back(address, bytes);
  }
  void end_reading() {
    for (const auto& [address, bytes] : fibers_[current_]->under_way) read_published(address, bytes);
    fibers_[current_]->under_way.clear();
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
  void read_published(const void* address, int bytes) {
    for_words(static_cast<const char*>(address), bytes, [&](Shadow& s) {
      if (!s.published) fail("an operand in shared memory was not published");
    });
    read(address, bytes);
  }
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
    s.published = false;
    fibers_[current_]->unpublished.push_back(static_cast<size_t>(&s - shadow_.data()));
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
    fiber.waited = false;
    fiber.unpublished.clear();
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

  bool dependent_ = false;
  int threads_ = 0, current_ = 0, alive_ = 0, barrier_arrived_ = 0;
  int64_t block_ = 0, blocks_ = 0, shared_size_ = 0;
  int partial_arrived_ = 0, partial_count_ = 0;
  uint64_t barrier_generation_ = 0, partial_generation_ = 0;
  uint32_t epoch_ = 1;
  char* shared_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::vector<Group> groups_;
  std::map<const void*, Bulk> bulk_;
  uint64_t bulk_begun_ = 0;
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

}  // namespace host
}  // namespace puma::dev
