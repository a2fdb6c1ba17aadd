#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace quantaria {

/// A fixed set of threads that share the iterations of one loop at a time. The calling thread works
/// too, so a pool of n threads starts n - 1.
///
/// Threads that wait look for work for some tens of microseconds before they sleep, because waking one
/// up costs as much; they sleep at once where looking cannot pay: with more threads than cores, after
/// loops that lay far apart, and for a while after the system has given the core of one that was looking
/// to somebody else.
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
  /// the thread count. A call from inside a body, or while another thread's loop is under way, runs on
  /// the calling thread alone.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  using Clock = std::chrono::steady_clock;
  /// Apart from one another, so that taking an iteration does not disturb those who look at the gate.
  static constexpr size_t kLine = 64;

  void run_shared(int64_t count, const std::function<void(int64_t)>& body);
  void run();
  void work();
  void wake_sleepers(int64_t wanted);
  void wait_for_guests();
  bool wait_for_loop(uint64_t seen);
  template <class Done>
  bool spin(Clock::duration limit, Done&& done);

  const int threads_;
  const bool may_spin_;
  std::vector<std::thread> workers_;
  std::atomic<bool> busy_{false};

  /// The loop under way: a number that grows from loop to loop, whether it is open to workers, and how many
  /// are in it. `body_`, `count_` and `next_` stay as they are while the gate is open or a worker is in.
  alignas(kLine) std::atomic<uint64_t> gate_{0};
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  alignas(kLine) std::atomic<int64_t> next_{0};

  alignas(kLine) std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stopping_{false};

  std::mutex error_mutex_;
  int64_t error_index_ = 0;
  std::exception_ptr error_;

  Clock::time_point ended_{};
  std::atomic<int> patience_{0};  // > 0 while loops follow each other closely
  std::atomic<int> crowded_{0};   // waits that will not spin, because one that did lost its core
};

/// Cores that this process may run on (the affinity mask), at least 1.
int available_threads();

}  // namespace quantaria
