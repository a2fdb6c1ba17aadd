// ggml_bench FOLDER product|experts N K M THREADS BUDGET: llama.cpp's products with Q4_0 weights in its
// repacked order, out of the prebuilt library in FOLDER, as JSON lines.
//   product: [M, K] with [N, K]; experts: M tokens through 64 experts, 6 each, N -> K -> N, SwiGLU between.

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// What the library's headers declare, as far as it is used here.
using Handle = void*;
struct InitParams {
  size_t size;
  void* buffer;
  bool no_alloc;
};
struct ThreadPoolParams {
  bool mask[512];
  int threads;
  int priority;
  uint32_t poll;
  bool strict;
  bool paused;
};
constexpr int kF32 = 0;
constexpr int kQ4_0 = 2;
constexpr int kI32 = 26;

template <class Function>
Function* find(void* library, const char* name) {
  void* const symbol = dlsym(library, name);
  if (symbol == nullptr) throw std::runtime_error(std::string("no function ") + name);
  return reinterpret_cast<Function*>(symbol);
}

void* open(const std::string& file, int flags) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | flags);
  if (library == nullptr) throw std::runtime_error(dlerror());
  return library;
}

/// The variant for this processor: the one that gives itself the highest score.
void* open_cpu(const std::string& folder) {
  std::string best;
  int most = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.rfind("libggml-cpu-", 0) != 0) continue;
    void* const library = open(entry.path(), RTLD_LOCAL);
    const int score = find<int()>(library, "ggml_backend_score")();
    if (score > most) {
      most = score;
      best = entry.path();
    }
    dlclose(library);
  }
  if (best.empty()) throw std::runtime_error("no variant for this processor");
  return open(best, RTLD_GLOBAL);
}

class Ggml {
 public:
  Ggml(const std::string& folder, int threads)
      : base_(open(folder + "/libggml-base.so", RTLD_GLOBAL)), cpu_(open_cpu(folder)) {
    backend_ = find<Handle()>(cpu_, "ggml_backend_cpu_init")();
    find<void(Handle, int)>(cpu_, "ggml_backend_cpu_set_n_threads")(backend_, threads);
    ThreadPoolParams params;
    find<void(ThreadPoolParams*, int)>(base_, "ggml_threadpool_params_init")(&params, threads);
    const Handle pool = find<Handle(ThreadPoolParams*)>(cpu_, "ggml_threadpool_new")(&params);
    find<void(Handle, Handle)>(cpu_, "ggml_backend_cpu_set_threadpool")(backend_, pool);
    plain_ = find<Handle()>(base_, "ggml_backend_cpu_buffer_type")();
    repacked_ = find<Handle()>(cpu_, "_Z35ggml_backend_cpu_repack_buffer_typev")();
  }

  Handle context() const { return base<Handle(InitParams)>("ggml_init")({size_t{1} << 22, nullptr, true}); }
  Handle tensor(Handle context, int type, std::vector<int64_t> shape) const {
    return base<Handle(Handle, int, int, const int64_t*)>("ggml_new_tensor")(
        context, type, static_cast<int>(shape.size()), shape.data());
  }
  void allocate(Handle context, bool repacked) const {
    const auto allocate_all = base<Handle(Handle, Handle)>("ggml_backend_alloc_ctx_tensors_from_buft");
    if (allocate_all(context, repacked ? repacked_ : plain_) == nullptr)
      throw std::runtime_error("no memory of that kind");
  }
  void set(Handle tensor, const void* data, size_t bytes) const {
    base<void(Handle, const void*, size_t, size_t)>("ggml_backend_tensor_set")(tensor, data, 0, bytes);
  }
  Handle product(Handle context, Handle w, Handle x) const {
    return base<Handle(Handle, Handle, Handle)>("ggml_mul_mat")(context, w, x);
  }
  Handle expert_product(Handle context, Handle w, Handle x, Handle ids) const {
    return base<Handle(Handle, Handle, Handle, Handle)>("ggml_mul_mat_id")(context, w, x, ids);
  }
  Handle swiglu(Handle context, Handle x) const {
    return base<Handle(Handle, Handle)>("ggml_swiglu")(context, x);
  }
  Handle graph(Handle context) const {
    return base<Handle(Handle, size_t, bool)>("ggml_new_graph_custom")(context, 2048, false);
  }
  void add(Handle graph, Handle result) const {
    base<void(Handle, Handle)>("ggml_build_forward_expand")(graph, result);
  }
  void compute(Handle graph) const {
    if (base<int(Handle, Handle)>("ggml_backend_graph_compute")(backend_, graph) != 0)
      throw std::runtime_error("the graph failed");
  }
  /// Random weights [rows, columns] as Q4_0.
  std::vector<uint8_t> weights(int64_t rows, int64_t columns) const {
    const std::vector<float> values = normals(rows * columns, 0.02f);
    std::vector<uint8_t> packed(base<size_t(int, int64_t)>("ggml_row_size")(kQ4_0, columns) *
                                static_cast<size_t>(rows));
    base<size_t(int, const float*, void*, int64_t, int64_t, int64_t, const float*)>("ggml_quantize_chunk")(
        kQ4_0, values.data(), packed.data(), 0, rows, columns, nullptr);
    return packed;
  }
  static std::vector<float> normals(int64_t count, float deviation) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random);
    return values;
  }

 private:
  template <class Function>
  Function* base(const char* name) const {
    return find<Function>(base_, name);
  }

  void* base_;
  void* cpu_;
  Handle backend_;
  Handle plain_;
  Handle repacked_;
};

struct Job {
  int64_t n, k, m;
  double budget;
};

/// Times a graph of `units` equal pieces of work.
void report(const Ggml& ggml, Handle graph, const char* name, const Job& job, int64_t units, double bytes,
            double operations) {
  using Clock = std::chrono::steady_clock;
  ggml.compute(graph);
  std::vector<double> seconds;
  for (double total = 0; seconds.size() < 5 || total < job.budget;) {
    const auto start = Clock::now();
    ggml.compute(graph);
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    total += took;
    seconds.push_back(took / static_cast<double>(units));
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf(R"({"name":"%s","compute":"int8","shape":[%ld,%ld],"m":%ld,"median":%.9g,"best":%.9g,)"
              R"("repetitions":%zu,"bytes":%.0f,"operations":%.0f})"
              "\n",
              name, static_cast<long>(job.n), static_cast<long>(job.k), static_cast<long>(job.m),
              seconds[seconds.size() / 2], seconds.front(), seconds.size(), bytes, operations);
}

/// Weights are taken in turn, so that few rows read them from memory.
void product(const Ggml& ggml, const Job& job) {
  const std::vector<uint8_t> packed = ggml.weights(job.n, job.k);
  const int64_t units =
      job.m <= 16 ? std::max<int64_t>(2, (160 << 20) / static_cast<int64_t>(packed.size()) + 1) : 2;
  const Handle weights = ggml.context();
  std::vector<Handle> all;
  for (int64_t i = 0; i < units; ++i) all.push_back(ggml.tensor(weights, kQ4_0, {job.k, job.n}));
  ggml.allocate(weights, true);
  for (const Handle w : all) ggml.set(w, packed.data(), packed.size());
  const Handle context = ggml.context();
  const Handle x = ggml.tensor(context, kF32, {job.k, job.m});
  const Handle graph = ggml.graph(context);
  for (const Handle w : all) ggml.add(graph, ggml.product(context, w, x));
  ggml.allocate(context, false);
  const std::vector<float> values = Ggml::normals(job.k * job.m, 1);
  ggml.set(x, values.data(), values.size() * sizeof(float));
  report(ggml, graph, "llama.cpp Q4_0 repacked", job, units, static_cast<double>(packed.size()),
         2.0 * static_cast<double>(job.n * job.k * job.m));
}

void experts(const Ggml& ggml, const Job& job) {
  constexpr int64_t count = 64, top = 6;
  const int64_t hidden = job.n, inter = job.k;
  const auto repeat = [](const std::vector<uint8_t>& one) {
    std::vector<uint8_t> all;
    for (int64_t e = 0; e < count; ++e) all.insert(all.end(), one.begin(), one.end());
    return all;
  };
  const std::vector<uint8_t> up = repeat(ggml.weights(2 * inter, hidden));
  const std::vector<uint8_t> down = repeat(ggml.weights(hidden, inter));
  const Handle weights = ggml.context();
  const Handle w1 = ggml.tensor(weights, kQ4_0, {hidden, 2 * inter, count});
  const Handle w2 = ggml.tensor(weights, kQ4_0, {inter, hidden, count});
  ggml.allocate(weights, true);
  ggml.set(w1, up.data(), up.size());
  ggml.set(w2, down.data(), down.size());

  const int64_t units = job.m == 1 ? 16 : job.m <= 16 ? 4 : 1;
  const Handle context = ggml.context();
  const Handle x = ggml.tensor(context, kF32, {hidden, 1, job.m});
  const Handle graph = ggml.graph(context);
  std::vector<Handle> ids;
  for (int64_t i = 0; i < units; ++i) {
    ids.push_back(ggml.tensor(context, kI32, {top, job.m}));
    const Handle between = ggml.swiglu(context, ggml.expert_product(context, w1, x, ids.back()));
    ggml.add(graph, ggml.expert_product(context, w2, between, ids.back()));
  }
  ggml.allocate(context, false);
  const std::vector<float> values = Ggml::normals(hidden * job.m, 1);
  ggml.set(x, values.data(), values.size() * sizeof(float));
  std::mt19937 random(2);
  size_t hit = 0;
  for (const Handle tensor : ids) {
    std::vector<int32_t> chosen, order(count);
    std::vector<bool> seen(count);
    for (int64_t t = 0; t < job.m; ++t) {
      for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int32_t>(e);
      std::shuffle(order.begin(), order.end(), random);
      chosen.insert(chosen.end(), order.begin(), order.begin() + top);
      for (int64_t k = 0; k < top; ++k) seen[static_cast<size_t>(order[static_cast<size_t>(k)])] = true;
    }
    hit += static_cast<size_t>(std::count(seen.begin(), seen.end(), true));
    ggml.set(tensor, chosen.data(), chosen.size() * sizeof(int32_t));
  }
  const double bytes =
      static_cast<double>((up.size() + down.size()) / count * hit) / static_cast<double>(units);
  report(ggml, graph, "llama.cpp MoE Q4_0 repacked", job, units, bytes,
         2.0 * static_cast<double>(job.m * top * 3 * hidden * inter));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 8) throw std::runtime_error("seven arguments expected");
    const Ggml ggml(argv[1], std::stoi(argv[6]));
    const Job job{std::stoll(argv[3]), std::stoll(argv[4]), std::stoll(argv[5]), std::stod(argv[7])};
    std::string(argv[2]) == "experts" ? experts(ggml, job) : product(ggml, job);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
