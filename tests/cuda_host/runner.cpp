// Runs the CUDA kernels' source on the host. Reads cases from standard input, writes the results to standard output:
// a line of words describes the case, then the bytes of each input follow; the results come back as bytes.
// Used by run.py, which knows both sides' order of tensors.
#include <iostream>
#include <limits>
#include <map>
#include <sstream>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "fused.h"
#include "general_launch.h"
#include "general_path.h"
#include "prompts_launch.h"

namespace puma {
namespace {

class HostLauncher {
 public:
  HostLauncher(DeviceLimits limits, uint32_t seed) : limits_(limits), seed_(seed) {}
  DeviceLimits limits() const { return limits_; }

  template <typename Kernel>
  void run(int64_t blocks, int shared_bytes, const typename Kernel::Arguments& arguments) const {
    if (shared_bytes > limits_.shared_bytes_per_block) dev::host::fail("more shared memory than the device has");
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(seed_);
    std::shuffle(order.begin(), order.end(), random);
    for (const int64_t block : order) {
      dev::host::block().run(Kernel::kThreads, shared_bytes, block, blocks, static_cast<uint32_t>(random()),
                             Kernel::kDependent, [&] { Kernel::body(arguments); });
    }
  }

 private:
  DeviceLimits limits_;
  uint32_t seed_;
};

// Exactly as large as asked for, so that the address sanitizer sees the first byte behind it.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : bytes_(bytes), data_(bytes == 0 ? nullptr : std::aligned_alloc(16, (bytes + 15) / 16 * 16)) {
    if (bytes > 0) std::memset(data_, 0xff, bytes);  // NaN
#if defined(__SANITIZE_ADDRESS__)
    if (bytes % 16 != 0) __asan_poison_memory_region(static_cast<char*>(data_) + bytes, 16 - bytes % 16);
#endif
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
#if defined(__SANITIZE_ADDRESS__)
    if (bytes_ % 16 != 0) __asan_unpoison_memory_region(static_cast<char*>(data_) + bytes_, 16 - bytes_ % 16);
#endif
    std::free(data_);
  }
  Buffer& read() {
    if (bytes_ > 0 && !std::cin.read(static_cast<char*>(data_), bytes_)) dev::host::fail("input ends early");
    return *this;
  }
  void write() const { std::cout.write(static_cast<const char*>(data_), bytes_); }
  template <typename T = void>
  T* get() const {
    return static_cast<T*>(data_);
  }

 private:
  int64_t bytes_;
  void* data_;
};

struct Case {
  std::map<std::string, std::string> words;
  int64_t number(const std::string& key) const { return std::stoll(words.at(key)); }
  double real(const std::string& key) const { return std::stod(words.at(key)); }
  bool flag(const std::string& key) const { return number(key) != 0; }
  HostLauncher launcher() const {
    return {{static_cast<int>(number("multiprocessors")), static_cast<int>(number("shared_bytes")), flag("warpgroups")},
            static_cast<uint32_t>(number("seed"))};
  }
  AdapterSizes sizes() const { return {number("B"), number("N"), number("C"), number("r")}; }
};

// What general_path.h needs, in plain loops.
template <typename T>
class HostBackend {
 public:
  struct Array {
    std::shared_ptr<Buffer> buffer;
    int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
  };
  explicit HostBackend(const HostLauncher& launcher) : launcher_(launcher) {}

  const HostLauncher& launcher() const { return launcher_; }
  template <typename S>
  Array empty(int64_t rows, int64_t columns) const {
    return {std::make_shared<Buffer>(rows * columns * sizeof(S)), rows, columns, columns, 1};
  }
  int32_t* integers(int64_t count) {
    integers_ = std::make_shared<Buffer>(count * 4);
    return integers_->template get<int32_t>();
  }
  Array product(const Array& a, const Array& b) const {
    Array c = empty<T>(a.rows, b.columns);
    for (int64_t i = 0; i < c.rows; ++i) {
      for (int64_t j = 0; j < c.columns; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < a.columns; ++k) sum += element(a, i, k) * element(b, k, j);
        dev::from_arithmetic(static_cast<arithmetic_t<T>>(sum), c.buffer->template get<T>()[i * c.columns + j]);
      }
    }
    return c;
  }
  static Array transposed(const Array& a) { return {a.buffer, a.columns, a.rows, a.column_stride, a.row_stride}; }
  static void* data(const Array& a) { return a.buffer->get(); }

 private:
  static double element(const Array& a, int64_t row, int64_t column) {
    return dev::to_arithmetic(a.buffer->template get<T>()[row * a.row_stride + column * a.column_stride]);
  }
  HostLauncher launcher_;
  std::shared_ptr<Buffer> integers_;
};

template <typename T, typename R>
void run_fused(const HostLauncher& launcher, const ForwardProblem& forward, const BackwardProblem& backward) {
  const AdapterSizes& s = forward.sizes;
  with_fused_adapter<T, R>(s.width, [&](auto adapter) {
    // Where no backward follows, the forward keeps what it prepares to itself.
    ForwardProblem alone = forward;
    alone.hidden = alone.prepared = nullptr;
    Buffer alone_workspace(adapter.forward(launcher, alone, nullptr));
    adapter.forward(launcher, alone, alone_workspace.get<char>());
    Buffer forward_workspace(adapter.forward(launcher, forward, nullptr));
    adapter.forward(launcher, forward, forward_workspace.get<char>());
    // A backward may be followed by another one of the same forward.
    const int64_t bytes = prepared_bytes(s, sizeof(T)), elements = s.samples * s.tokens_per_sample * s.channels;
    const auto* begin = static_cast<const char*>(forward.prepared);
    const std::vector<char> before(begin, begin + bytes);
    for (int time = 0; time < 2; ++time) {
      if (backward.grad_tokens != nullptr) std::memset(backward.grad_tokens, 0xff, elements * sizeof(T));
      Buffer backward_workspace(adapter.backward(launcher, backward, nullptr));
      adapter.backward(launcher, backward, backward_workspace.get<char>());
      if (!std::equal(before.begin(), before.end(), begin)) dev::host::fail("the backward changed what was prepared");
    }
    return int64_t{0};
  });
}

template <typename T, typename R>
void run_general(const HostLauncher& launcher, const ForwardProblem& forward, const BackwardProblem& backward,
                 const std::shared_ptr<Buffer>& down, const std::shared_ptr<Buffer>& up) {
  const AdapterSizes& s = forward.sizes;
  HostBackend<T> backend(launcher);
  const Matrix &d = forward.down, &u = forward.up;
  const typename HostBackend<T>::Array down_array{down, s.channels, s.width, d.row_stride, d.column_stride};
  const typename HostBackend<T>::Array up_array{up, s.width, s.channels, u.row_stride, u.column_stride};
  const auto hidden = general_forward<T, R>(backend, forward, down_array, up_array);
  std::memcpy(forward.hidden, backend.data(hidden), s.samples * s.tokens_per_sample * s.width * sizeof(T));
  const bool need_weights = backward.grad_down != nullptr;
  const auto gradients = general_backward<T, R>(backend, backward, down_array, up_array, need_weights);
  if (need_weights) {
    std::memcpy(backward.grad_down, backend.data(gradients.down), s.channels * s.width * sizeof(T));
    std::memcpy(backward.grad_up, backend.data(gradients.up), s.channels * s.width * sizeof(T));
  }
}

template <typename T, typename R>
void adapter_case(const Case& c) {
  const AdapterSizes s = c.sizes();
  const int64_t rows = s.samples * s.tokens_per_sample;
  const HostLauncher launcher = c.launcher();
  const bool float_weights = c.flag("float_weights");
  const int64_t weight_bytes = s.channels * s.width * (float_weights ? sizeof(float) : sizeof(T));
  Buffer residual(rows * s.channels * sizeof(R)), tokens(rows * s.channels * sizeof(T));
  const auto down = std::make_shared<Buffer>(weight_bytes), up = std::make_shared<Buffer>(weight_bytes);
  Buffer gate(c.flag("gate") ? s.samples * sizeof(arithmetic_t<T>) : 0), grad(rows * s.channels * sizeof(R));
  const bool branch_is_narrow = c.words.at("branch") == "tokens";
  Buffer branch(c.words.at("branch") == "none" ? 0 : rows * s.channels * (branch_is_narrow ? sizeof(T) : sizeof(R)));
  for (Buffer* b : {&residual, &tokens, down.get(), up.get(), &gate, &grad, &branch}) b->read();
  Buffer out(rows * s.channels * sizeof(R)), hidden(rows * s.width * sizeof(T));
  Buffer prepared(prepared_bytes(s, sizeof(T)));
  Buffer grad_tokens(c.flag("need_tokens") ? rows * s.channels * sizeof(T) : 0);
  Buffer grad_down(c.flag("need_weights") ? weight_bytes : 0), grad_up(c.flag("need_weights") ? weight_bytes : 0);

  // transposed: the weights lie in memory the other way round.
  const bool transposed = c.flag("transposed");
  const Matrix down_view{down->get(), transposed ? 1 : s.width, transposed ? s.channels : 1, float_weights};
  const Matrix up_view{up->get(), transposed ? 1 : s.channels, transposed ? s.width : 1, float_weights};
  ForwardProblem forward{};
  forward.sizes = s;
  forward.residual = residual.get();
  forward.tokens = tokens.get();
  forward.down = down_view;
  forward.up = up_view;
  forward.gate = gate.get();
  forward.scale = c.real("scale");
  forward.out = out.get();
  forward.hidden = hidden.get();
  forward.prepared = prepared.get();
  forward.branch = branch.get();
  forward.branch_is_narrow = branch_is_narrow;
  BackwardProblem backward{};
  backward.sizes = s;
  backward.grad = grad.get();
  backward.tokens = tokens.get();
  backward.down = down_view;
  backward.up = up_view;
  backward.gate = gate.get();
  backward.hidden = hidden.get();
  backward.prepared = prepared.get();
  backward.scale = forward.scale;
  backward.grad_tokens = grad_tokens.get();
  backward.grad_down = grad_down.get();
  backward.grad_up = grad_up.get();

  const bool applies = fused_kernels_apply(s, sizeof(T));
  if (c.flag("fused") && !applies) dev::host::fail("the fused kernels do not take these sizes");
  if constexpr (!same_type<T, double>) {
    if (c.flag("fused")) run_fused<T, R>(launcher, forward, backward);
  }
  if (!c.flag("fused")) run_general<T, R>(launcher, forward, backward, down, up);
  for (const Buffer* b : {&out, &hidden, &grad_tokens, &grad_down, &grad_up}) b->write();
}

template <typename T>
void prompts_case(const Case& c) {
  const int64_t batch = c.number("B"), pool = c.number("M"), channels = c.number("C"), size = c.number("L") * channels;
  const HostLauncher launcher = c.launcher();
  constexpr int64_t kSize = sizeof(T);
  Buffer query(batch * channels * kSize), keys(pool * channels * kSize), attention(pool * channels * kSize);
  Buffer prompts(pool * size * kSize), grad_prompt(c.flag("grad_prompt") ? batch * size * kSize : 0);
  Buffer grad_weights(c.flag("grad_weights") ? batch * pool * kSize : 0);
  for (Buffer* b : {&query, &keys, &attention, &prompts, &grad_prompt, &grad_weights}) b->read();
  Buffer prompt(batch * size * kSize), weights(batch * pool * kSize), inverse_norm(batch * pool * kSize);
  PromptArguments<T> a{};
  a.batch = batch;
  a.pool = pool;
  a.channels = channels;
  a.prompt_size = size;
  a.tiny = std::numeric_limits<T>::min();
  a.query = query.get<T>();
  a.keys = keys.get<T>();
  a.attention = attention.get<T>();
  a.prompts = prompts.get<T>();
  a.weights = weights.get<T>();
  a.inverse_norm = inverse_norm.get<T>();
  a.prompt = prompt.get<T>();
  launch_prompts(launcher, a);
  for (const Buffer* b : {&prompt, &weights, &inverse_norm}) b->write();

  Buffer key_norm(pool * kSize), shares(kPromptSlices * batch * pool * kSize);
  Buffer focus(pool * channels * kSize), focused_keys(pool * channels * kSize);
  Buffer grad_query(c.flag("need_query") ? batch * channels * kSize : 0), grad_keys(pool * channels * kSize);
  Buffer grad_attention(pool * channels * kSize), grad_prompts(pool * size * kSize);
  PromptGradientArguments<T> g{};
  g.batch = batch;
  g.pool = pool;
  g.channels = channels;
  g.prompt_size = size;
  g.tiny = a.tiny;
  g.grad_prompt = grad_prompt.get<T>();
  g.grad_weights = grad_weights.get<T>();
  g.query = a.query;
  g.keys = a.keys;
  g.attention = a.attention;
  g.prompts = a.prompts;
  g.weights = a.weights;
  g.inverse_norm = a.inverse_norm;
  g.focus = focus.get<T>();
  g.focused_keys = focused_keys.get<T>();
  g.key_norm = key_norm.get<T>();
  g.shares = shares.get<T>();
  g.grad_query = grad_query.get<T>();
  g.grad_keys = grad_keys.get<T>();
  g.grad_attention = grad_attention.get<T>();
  g.grad_prompts = grad_prompts.get<T>();
  launch_prompt_gradients(launcher, g);
  for (const Buffer* b : {&grad_query, &grad_keys, &grad_attention, &grad_prompts}) b->write();
}

// How the adapter would be launched, as int64: forward: blocks, bytes of shared memory, resident or not; whether the
// backward's weights are, which may have one product; the weights'
// gradients: blocks, splits, stages, bytes of shared memory; bytes of the backward's workspace, and prepared for it.
template <typename T, typename R, int kWidth>
void plan_case(const Case& c) {
  using Packed = PackedWeights<T, kWidth>;
  using Gradient = GradientTile<T, kWidth>;
  const AdapterSizes s = c.sizes();
  const HostLauncher launcher = c.launcher();
  const int64_t steps = padded_channels(s.channels, sizeof(T)) / Packed::kStepColumns;
  using Kernel = AdapterKernel<T, R, kWidth, false, Branch::kNone>;
  const AdapterShape shape = FusedAdapter<T, R, kWidth>::template shape<Kernel>();
  const AdapterPlan adapter = plan_adapter(launcher.limits(), s, shape, steps, 2);
  const AdapterPlan back = plan_adapter(launcher.limits(), s, shape, steps, c.flag("need_tokens") ? 2 : 1);
  const GradientPlan gradient = plan_gradient(launcher.limits(), s, kWidth, Gradient::kRows, Gradient::kStageBytes);
  BackwardProblem backward{};
  backward.sizes = s;
  backward.grad_down = &backward;  // any address: wanted
  const int64_t values[] = {adapter.blocks,
                            adapter.shared_bytes,
                            adapter.resident,
                            back.resident,
                            gradient.blocks,
                            gradient.splits,
                            gradient.stages,
                            gradient.shared_bytes,
                            FusedAdapter<T, R, kWidth>::backward(launcher, backward, nullptr),
                            prepared_bytes(s, sizeof(T))};
  std::cout.write(reinterpret_cast<const char*>(values), sizeof(values));
}

void run_plan(const Case& c) {
  const bool narrow = padded_width(c.number("r")) == 64;
  const std::string tokens = c.words.at("tokens"), residual = c.words.at("residual");
  if (tokens == "float32") return narrow ? plan_case<float, float, 64>(c) : plan_case<float, float, 128>(c);
  if (residual == "float32") return narrow ? plan_case<bf16, float, 64>(c) : plan_case<bf16, float, 128>(c);
  return narrow ? plan_case<bf16, bf16, 64>(c) : plan_case<bf16, bf16, 128>(c);
}

// Kernels with one mistake each, which the host execution must find.
template <int kFault>
struct FaultyKernel {
  struct Arguments {
    float* data;
  };
  static constexpr int kThreads = 64;
  static constexpr bool kDependent = kFault >= 9;
  static void body(const Arguments& a) {
    auto* shared = reinterpret_cast<float*>(dev::shared_memory());
    const int i = dev::thread();
    if constexpr (kFault == 0) {  // none: neighbours exchange values
      dev::store_shared(shared + i, a.data[i]);
      dev::sync_block();
      a.data[i] = dev::load_shared(shared + (i + 1) % kThreads);
    } else if constexpr (kFault == 1) {  // read without a barrier
      dev::store_shared(shared + i, a.data[i]);
      a.data[i] = dev::load_shared(shared + (i + 1) % kThreads);
    } else if constexpr (kFault == 2) {  // written again before all have read
      dev::store_shared(shared + i, a.data[i]);
      dev::sync_block();
      a.data[i] = dev::load_shared(shared + (i + 1) % kThreads);
      dev::store_shared(shared + i, 0.0f);
    } else if constexpr (kFault == 3) {  // a barrier that half of the threads miss
      if (i < 32) {
        dev::sync_block();
      } else {
        dev::ballot(i % 2 == 0);
        if (i % 2 == 0) dev::ballot(true);  // half of a warp
      }
    } else if constexpr (kFault == 4) {  // lanes of a warp meet in different operations
      if (i % 2 == 0) {
        a.data[i] = static_cast<float>(dev::ballot(true));
      } else {
        a.data[i] = dev::shuffle_xor(1.0f, 1);
      }
    } else if constexpr (kFault == 5) {  // a copy nobody waits for
      dev::copy_async16(shared + 4 * (i % 16), a.data + 4 * (i % 16));
      dev::copy_async_commit();
      dev::sync_block();
      a.data[i] = dev::load_shared(shared + i);
    } else if constexpr (kFault == 6) {  // behind the end of global memory
      dev::store_global16(a.data + 4 * (i + 1), Bytes16{{0, 0, 0, 0}});
    } else if constexpr (kFault == 7) {  // behind the end of shared memory
      dev::store_shared(shared + i + 1, 1.0f);
    } else if constexpr (kFault == 8) {  // 16 bytes from an address that is not a multiple of 16
      dev::load_global16(a.data + 1);
    } else if constexpr (kFault == 9) {  // written before the kernel in front has ended
      dev::store_global8(a.data, 0.0f, 0.0f);
    }
  }
};

template <int kFault>
void fault_case(const Case& c) {
  Buffer data(64 * 4);
  data.read();
  c.launcher().run<FaultyKernel<kFault>>(1, 64 * 4, {data.get<float>()});
  data.write();
}

void run_fault(const Case& c) {
  switch (c.number("fault")) {
    case 0: return fault_case<0>(c);
    case 1: return fault_case<1>(c);
    case 2: return fault_case<2>(c);
    case 3: return fault_case<3>(c);
    case 4: return fault_case<4>(c);
    case 5: return fault_case<5>(c);
    case 6: return fault_case<6>(c);
    case 7: return fault_case<7>(c);
    case 8: return fault_case<8>(c);
    case 9: return fault_case<9>(c);
    default: dev::host::fail("unknown fault");
  }
}

void run(const Case& c) {
  if (c.words.at("kind") == "fault") return run_fault(c);
  if (c.words.at("kind") == "plan") return run_plan(c);
  const std::string kind = c.words.at("kind"), tokens = c.words.at("tokens"), residual = c.words.at("residual");
  if (kind == "prompts") return tokens == "float64" ? prompts_case<double>(c) : prompts_case<float>(c);
  if (tokens == "float64") return adapter_case<double, double>(c);
  if (tokens == "float32") return adapter_case<float, float>(c);
  if (tokens == "bfloat16") return residual == "float32" ? adapter_case<bf16, float>(c) : adapter_case<bf16, bf16>(c);
  if (tokens == "float16") return residual == "float32" ? adapter_case<f16, float>(c) : adapter_case<f16, f16>(c);
  dev::host::fail("unknown case");
}

}  // namespace
}  // namespace puma

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream stream(line);
    puma::Case c;
    for (std::string key, value; stream >> key >> value;) c.words[key] = value;
    puma::run(c);
  }
  return 0;
}
