#include "ceilings.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <new>
#include <string>

#include "cpu/isa.h"
#include "harness.h"

namespace quantaria::bench {

namespace scalar {
extern const CeilingKernels fma_ceiling;
extern const ReadKernel read_ceiling;
}  // namespace scalar
namespace avx2 {
extern const CeilingKernels fma_ceiling;
extern const ReadKernel read_ceiling;
}  // namespace avx2
namespace avx512 {
extern const CeilingKernels fma_ceiling;
extern const ReadKernel read_ceiling;
}  // namespace avx512
extern const CeilingKernels avx512bf16_ceiling;
extern const CeilingKernels avx512vnni_ceiling;

namespace {

/// Far more than any cache.
constexpr int64_t kMemory = int64_t{256} << 20;
constexpr int64_t kChunk = int64_t{1} << 20;
/// Of registers only: about a tenth of a millisecond a task.
constexpr int64_t kIterations = 1 << 15;
constexpr int64_t kTasksPerThread = 32;

std::atomic<int64_t> g_sink;  // so that no loop is without effect

class LargePages {
 public:
  LargePages() : memory_(mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    madvise(memory_, kMemory, MADV_HUGEPAGE);
    std::memset(memory_, 1, kMemory);
  }
  ~LargePages() { munmap(memory_, kMemory); }
  LargePages(const LargePages&) = delete;
  LargePages& operator=(const LargePages&) = delete;
  char* at(int64_t offset) const { return static_cast<char*>(memory_) + offset; }

 private:
  void* memory_;
};

void measure_registers(ThreadPool& pool, const std::string& name, const CeilingKernels& kernels) {
  const int64_t tasks = kTasksPerThread * pool.threads();
  const double operations = kernels.operations * static_cast<double>(kIterations * tasks);
  measure("ceiling", name, pool.threads(), {.operations = operations}, [&](int) {
    pool.parallel_for(tasks, [&](int64_t) {
      g_sink.fetch_xor(static_cast<int64_t>(kernels.multiply_add(kIterations)), std::memory_order_relaxed);
    });
  });
}

}  // namespace

void measure_ceilings(ThreadPool& pool) {
  const ReadKernel reads[] = {scalar::read_ceiling, avx2::read_ceiling, avx512::read_ceiling};
  const CeilingKernels* const fmas[] = {&scalar::fma_ceiling, &avx2::fma_ceiling, &avx512::fma_ceiling};
  const size_t isa = std::min(static_cast<size_t>(detected_isa()), std::size(reads) - 1);
  {
    const LargePages memory;
    const auto bytes = static_cast<double>(kMemory);
    measure("ceiling", "read", pool.threads(), {.bytes = bytes}, [&](int) {
      pool.parallel_for(kMemory / kChunk, [&](int64_t i) {
        g_sink.fetch_xor(reads[isa](memory.at(i * kChunk), kChunk), std::memory_order_relaxed);
      });
    });
    // Bytes read; as many are written.
    measure("ceiling", "copy", pool.threads(), {.bytes = bytes / 2}, [&](int) {
      pool.parallel_for(kMemory / 2 / kChunk, [&](int64_t i) {
        std::memcpy(memory.at(kMemory / 2 + i * kChunk), memory.at(i * kChunk), kChunk);
      });
    });
  }
  measure_registers(pool, "float32", *fmas[isa]);
  if (__builtin_cpu_supports("avx512bf16")) measure_registers(pool, "bfloat16", avx512bf16_ceiling);
  if (__builtin_cpu_supports("avx512vnni")) measure_registers(pool, "int8", avx512vnni_ceiling);
}

}  // namespace quantaria::bench
