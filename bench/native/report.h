#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/thread_pool.h"

/// Rows of the native benchmarks: a kernel's time beside what the memory did in the same second.
namespace quantaria::bench {

using Clock = std::chrono::steady_clock;

inline constexpr int kRepetitions = 25;

/// What a kernel is held against.
enum class Memory { read, fill, copy };
inline constexpr const char* kMemoryNames[] = {"read", "fill", "copy"};

struct Timing {
  double best;
  double median;
};
template <class Run>
double seconds_of(const Run& run) {
  const auto start = Clock::now();
  run();
  return std::chrono::duration<double>(Clock::now() - start).count();
}
inline Timing timing_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

/// Reads, fills or copies by all threads of a pool over a buffer that no cache holds.
class Ceiling {
 public:
  explicit Ceiling(ThreadPool& pool) : pool_(pool), from_(kBytes, 1), to_(kBytes, 1) {}

  double bytes_per_second(Memory kind) {
    const double seconds = seconds_of([&] {
      pool_.parallel_for(kParts, [&](int64_t part) {
        const size_t at = static_cast<size_t>(part) * kPartBytes;
        if (kind == Memory::read) read(from_.data() + at);
        if (kind == Memory::fill) std::memset(to_.data() + at, 2, kPartBytes);
        if (kind == Memory::copy) std::memcpy(to_.data() + at, from_.data() + at, kPartBytes);
      });
    });
    return static_cast<double>(kBytes) / seconds;
  }

 private:
  static constexpr size_t kPartBytes = size_t{1} << 20;
  static constexpr int64_t kParts = 64;
  static constexpr size_t kBytes = kPartBytes * kParts;

  void read(const uint8_t* from) {
    using Register [[gnu::vector_size(16)]] = uint64_t;
    Register sums[4] = {};
    for (size_t i = 0; i < kPartBytes; i += sizeof sums)
      for (size_t j = 0; j < 4; ++j) {
        Register x;
        std::memcpy(&x, from + i + j * sizeof x, sizeof x);
        sums[j] += x;
      }
    const Register sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    read_.store(sum[0] + sum[1], std::memory_order_relaxed);
  }

  ThreadPool& pool_;
  std::vector<uint8_t> from_;
  std::vector<uint8_t> to_;
  std::atomic<uint64_t> read_{0};  // so that the reads are not optimised away
};

inline void report(Ceiling& ceiling, Memory kind, const std::string& name, double bytes,
                   const std::function<void(int)>& run) {
  std::vector<double> seconds;
  std::vector<double> rates;
  for (int i = 0; i < kRepetitions; ++i) {
    if (i % 5 == 0) rates.push_back(ceiling.bytes_per_second(kind));
    seconds.push_back(seconds_of([&] { run(i); }));
  }
  const Timing time = timing_of(seconds);
  const double rate = timing_of(rates).median;
  std::printf("  %-42s best %7.2f ms  median %7.2f ms %6.2f GB/s, %3.0f %% of %s (%.1f)\n", name.c_str(),
              time.best * 1e3, time.median * 1e3, bytes / time.median / 1e9, 100 * bytes / time.median / rate,
              kMemoryNames[static_cast<int>(kind)], rate / 1e9);
}

}  // namespace quantaria::bench
