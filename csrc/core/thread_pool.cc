#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>

namespace quantaria {

/// One loop: iterations are handed out one by one from a counter, so a thread that the system has put
/// aside never holds more than one of them.
struct ThreadPool::Loop {
  Loop(int64_t n, const std::function<void(int64_t)>& f) : count(n), body(f) {}

  const int64_t count;
  const std::function<void(int64_t)>& body;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> finished{0};
  std::mutex error_mutex;
  int64_t error_index = std::numeric_limits<int64_t>::max();
  std::exception_ptr error;

  /// Returns true if this call finished the last iteration.
  bool run() {
    int64_t mine = 0;
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (i < error_index) {
          error_index = i;
          error = std::current_exception();
        }
      }
      ++mine;
    }
    return mine > 0 && finished.fetch_add(mine) + mine == count;
  }
};

ThreadPool::ThreadPool(int threads) : threads_(std::max(1, threads)) {}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::start() {
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { work(); });
}

void ThreadPool::work() {
  uint64_t seen = 0;
  for (;;) {
    std::shared_ptr<Loop> loop;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      loop = loop_;
    }
    // A worker that wakes up late may find the loop already gone.
    if (loop && loop->run()) {
      const std::lock_guard lock(mutex_);
      done_.notify_all();
    }
  }
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  const auto loop = std::make_shared<Loop>(count, body);
  if (threads_ > 1 && count > 1) {
    {
      const std::lock_guard lock(mutex_);
      if (workers_.empty()) start();
      loop_ = loop;
      ++generation_;
    }
    wake_.notify_all();
  }
  loop->run();
  if (loop->finished.load() != count) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return loop->finished.load() == count; });
  }
  if (threads_ > 1 && count > 1) {
    const std::lock_guard lock(mutex_);
    loop_.reset();
  }
  if (loop->error) std::rethrow_exception(loop->error);
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace quantaria
