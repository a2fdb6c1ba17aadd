#include "harness.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

namespace quantaria::bench {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

double& budget() {
  static double seconds = 0.4;
  return seconds;
}

std::vector<float> weights(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

void measure(const std::string& kind, const std::string& name, int threads, const Work& work,
             const std::function<void(int)>& run) {
  using Clock = std::chrono::steady_clock;
  constexpr size_t kLeast = 5;
  constexpr size_t kMost = 2000;
  run(0);
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < kLeast || (total < budget() && seconds.size() < kMost)) {
    const auto start = Clock::now();
    run(static_cast<int>(seconds.size()) + 1);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += seconds.back();
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf(R"({"kind":"%s","case":"%s","threads":%d,"median":%.9g,"best":%.9g,"repetitions":%zu,)"
              R"("bytes":%.0f,"operations":%.0f})"
              "\n",
              kind.c_str(), name.c_str(), threads, seconds[seconds.size() / 2], seconds.front(),
              seconds.size(), work.bytes, work.operations);
  std::fflush(stdout);
}

}  // namespace quantaria::bench
