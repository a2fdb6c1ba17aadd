// Runs the tests whose name contains the first argument; all of them without one.
#include <exception>

#include "check.h"

int main(int argc, char** argv) {
  using namespace quantaria::test;
  const std::string_view wanted = argc > 1 ? argv[1] : "";
  int passed = 0;
  int failed = 0;
  for (const Test& test : registry()) {
    if (test.name.find(wanted) == std::string::npos) continue;
    failures() = 0;
    try {
      test.body();
    } catch (const std::exception& error) {
      report(test.file, 0, std::string("uncaught: ") + error.what());
    }
    if (failures() == 0) {
      ++passed;
    } else {
      ++failed;
      std::cerr << "failed: " << test.name << "\n";
    }
  }
  std::cout << "cpp: " << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? 0 : 1;
}
