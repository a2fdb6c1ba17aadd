#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace quantaria {

/// A fixed set of threads that share the iterations of one loop at a time. The calling thread works
/// too, so a pool of n threads starts n - 1.
class ThreadPool {
 public:
  /// Threads are started at the first parallel loop. `threads` >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /// Runs body(i) for every i in [0, count), in any order, and returns when all have run. If bodies
  /// throw, the exception of the lowest i is thrown here, so that an error message does not depend on
  /// the thread count. Must not be called from inside a body.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  struct Loop;
  void start();
  void work();

  const int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::shared_ptr<Loop> loop_;
  uint64_t generation_ = 0;
  bool stopping_ = false;
};

/// Cores that this process may run on (the affinity mask), at least 1.
int available_threads();

}  // namespace quantaria
