#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace quantaria {

/// Threads that take tasks from one queue, in order: with a single one, each task ends before the next
/// begins. They start with the first task.
class Executor {
 public:
  explicit Executor(int threads = 1) : count_(threads) {}
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Tasks must not throw.
  void post(std::function<void()> task);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  const int count_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
};

}  // namespace quantaria
