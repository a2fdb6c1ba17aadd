// Runs the tests whose name contains the first argument; all of them without one. Each has a process of its
// own, as many at once as there are cores: a crash is one failure, and no test inherits what others left
// behind. Some fork in turn, for which the thread sanitizer wants a process that has run neither threads nor
// fibers.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>

#include "check.h"
#include "core/thread_pool.h"

#if defined(__SANITIZE_THREAD__)
// It would sleep for a second wherever a process with several threads ends.
extern "C" [[gnu::visibility("default")]] const char* __tsan_default_options() { return "atexit_sleep_ms=0"; }
#endif

namespace {

using namespace quantaria::test;

constexpr int kPassed = 77;  // not 0: a test that ends its process has not passed

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

struct Running {
  const Test* test;
  File said;
};

[[noreturn]] void run_here(const Test& test, std::FILE* said) {
  dup2(fileno(said), STDOUT_FILENO);
  dup2(fileno(said), STDERR_FILENO);
  try {
    test.body();
  } catch (const std::exception& error) {
    report(test.file, 0, std::string("uncaught: ") + error.what());
  }
  std::exit(failures() == 0 ? kPassed : 1);  // leaks and races that were found make it another status
}

void show_said(std::FILE* said) {
  std::rewind(said);
  char buffer[4096];
  for (size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, said)) > 0;)
    std::fwrite(buffer, 1, got, stderr);
}

class Runner {
 public:
  void start(const Test& test) {
    File said(std::tmpfile());
    std::fflush(nullptr);  // what waits to be written would be written by the child too
    const pid_t child = said ? fork() : -1;
    if (child < 0) {
      ++failed_;
      std::cerr << "failed: " << test.name << " (no process for it)\n";
      return;
    }
    if (child == 0) run_here(test, said.get());
    running_.emplace(child, Running{&test, std::move(said)});
  }

  void await_one() {
    int status = 0;
    const auto ended = running_.find(waitpid(-1, &status, 0));
    if (ended == running_.end()) return;
    show_said(ended->second.said.get());
    if (WIFEXITED(status) && WEXITSTATUS(status) == kPassed) {
      ++passed_;
    } else {
      ++failed_;
      std::cerr << "failed: " << ended->second.test->name;
      if (WIFSIGNALED(status)) std::cerr << " (ended by signal " << WTERMSIG(status) << ")";
      std::cerr << "\n";
    }
    running_.erase(ended);
  }

  size_t running() const { return running_.size(); }

  /// The closing line, and the exit status.
  int close() const {
    std::cout << "cpp: " << passed_ << " passed, " << failed_ << " failed\n";
    return failed_ == 0 && passed_ > 0 ? 0 : 1;
  }

 private:
  std::map<pid_t, Running> running_;
  int passed_ = 0;
  int failed_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string_view wanted = argc > 1 ? argv[1] : "";
  const auto at_once = static_cast<size_t>(quantaria::available_threads());
  Runner runner;
  for (const Test& test : registry()) {
    if (test.name.find(wanted) == std::string::npos) continue;
    if (runner.running() == at_once) runner.await_one();
    runner.start(test);
  }
  while (runner.running() > 0) runner.await_one();
  return runner.close();
}
