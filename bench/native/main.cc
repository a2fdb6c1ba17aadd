// quantaria_bench [--threads 1,2] [--budget SECONDS] [--ceilings] [part of a case's name]...
// Times the kernels whose name holds one of the parts (all without one), for each number of threads, with the
// machine's ceilings before and after, so that a change of the neighbours' load shows. --ceilings: those
// alone. One JSON object a line.

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "harness.h"

namespace {

using namespace quantaria;

struct Options {
  std::vector<int> threads;
  std::vector<std::string> parts;
  bool ceilings_only = false;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--threads" && has_value) {
      std::istringstream list(argv[++i]);
      for (std::string item; std::getline(list, item, ',');) options.threads.push_back(std::stoi(item));
    } else if (argument == "--budget" && has_value) {
      bench::budget() = std::stod(argv[++i]);
    } else if (argument == "--ceilings") {
      options.ceilings_only = true;
    } else {
      options.parts.push_back(argument);
    }
  }
  if (options.threads.empty()) options.threads = {1, available_threads()};
  return options;
}

bool wanted(const Options& options, const std::string& name) {
  if (options.parts.empty()) return true;
  return std::any_of(options.parts.begin(), options.parts.end(),
                     [&](const std::string& part) { return name.find(part) != std::string::npos; });
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  for (const int threads : options.threads) {
    ThreadPool pool(threads);
    bench::measure_ceilings(pool);
    if (options.ceilings_only) continue;
    int run = 0;
    for (const bench::Case& entry : bench::cases()) {
      if (!wanted(options, entry.name)) continue;
      entry.body(pool);
      ++run;
    }
    if (run == 0) {
      std::fprintf(stderr, "error: no case has such a name\n");
      return 2;
    }
    bench::measure_ceilings(pool);
  }
  return 0;
}
