#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/thread_pool.h"

/// A small frame for timing kernels: cases register themselves, main.cc runs those that are asked for and
/// measures the machine's ceilings beside them. One JSON object a line.
namespace quantaria::bench {

/// What one run does, for rates.
struct Work {
  double bytes = 0;       // of memory that has to be read and written at least once
  double operations = 0;  // a multiplication and an addition are two
};

/// Times run(i), i = 0, 1, ... and prints a line: {kind, case, threads, median, best, repetitions, bytes,
/// operations} with seconds of one run. The first run is not counted.
void measure(const std::string& kind, const std::string& name, int threads, const Work& work,
             const std::function<void(int)>& run);

/// All ceilings of this machine that its instruction sets have: kind "ceiling", names read, copy, float32,
/// bfloat16, int8.
void measure_ceilings(ThreadPool& pool);

struct Case {
  std::string name;
  std::function<void(ThreadPool&)> body;
};
std::vector<Case>& cases();

struct Registration {
  Registration(std::string name, std::function<void(ThreadPool&)> body) {
    cases().push_back({std::move(name), std::move(body)});
  }
};

/// Normal values with a deviation like a trained weight's.
std::vector<float> weights(int64_t count, uint32_t seed);

/// Seconds that one case may take; set from the command line.
double& budget();

}  // namespace quantaria::bench
