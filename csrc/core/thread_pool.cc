#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace quantaria {
namespace {

using std::chrono::microseconds;

/// How long to look for the end of a loop: about what one of its iterations takes.
constexpr auto kEndSpin = microseconds(100);
/// How long a worker then looks for the next loop: about what being woken up costs.
constexpr auto kNextSpin = microseconds(50);
/// Between two looks at the clock; well under a microsecond.
constexpr int kPausesPerLook = 16;
/// A look at the clock that comes this late was held up: the system had given the core to somebody else.
constexpr auto kPutAside = microseconds(100);
/// Waits without spinning after that.
constexpr int kCrowdedWaits = 64;
/// Long gaps between loops until workers stop looking for the next one.
constexpr int kPatience = 4;

// The gate: number of the loop, open or not, workers in it.
constexpr uint64_t kGuest = 1;
constexpr uint64_t kOpen = uint64_t{1} << 16;
constexpr uint64_t kLoop = uint64_t{1} << 17;
constexpr uint64_t loop_of(uint64_t gate) { return gate / kLoop; }
constexpr uint64_t guests_of(uint64_t gate) { return gate % kOpen; }
constexpr bool is_open(uint64_t gate) { return (gate & kOpen) != 0; }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Takes one off a counter unless it is at 0; false if it was. Lost updates do no harm.
bool take_one(std::atomic<int>& counter) {
  const int left = counter.load(std::memory_order_relaxed);
  if (left > 0) counter.store(left - 1, std::memory_order_relaxed);
  return left > 0;
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(std::clamp(threads, 1, 1 << 15)), may_spin_(threads <= available_threads()) {}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

/// Looks for done() until `limit` has passed; false if it did not come.
template <class Done>
bool ThreadPool::spin(Clock::duration limit, Done&& done) {
  if (!may_spin_ || take_one(crowded_)) return false;
  const Clock::time_point began = Clock::now();
  for (Clock::time_point last = began;;) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      pause();
    }
    const Clock::time_point now = Clock::now();
    if (now - last > kPutAside) {
      crowded_.store(kCrowdedWaits, std::memory_order_relaxed);
      return false;
    }
    if (now - began > limit) return false;
    last = now;
  }
}

/// Iterations are handed out one by one from a counter, so a thread that the system has put aside never
/// holds more than one of them.
void ThreadPool::run() {
  const int64_t count = count_;
  for (int64_t i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) {
    try {
      (*body_)(i);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (i < error_index_) {
        error_index_ = i;
        error_ = std::current_exception();
      }
    }
  }
}

/// Returns when there is a loop after `seen`, open or not; false if the pool ends.
bool ThreadPool::wait_for_loop(uint64_t seen) {
  const auto comes = [&] { return loop_of(gate_.load()) != seen || stopping_.load(); };
  const auto ends = [&] { return !is_open(gate_.load()) || comes(); };
  const bool close_together = patience_.load(std::memory_order_relaxed) > 0;
  if (close_together && spin(kEndSpin, ends) && spin(kNextSpin, comes)) return !stopping_;
  std::unique_lock lock(mutex_);
  // The order matters: this thread counts itself before it looks at the gate, the caller opens the gate
  // before it looks at the count, so one of them sees the other.
  ++sleepers_;
  wake_.wait(lock, comes);
  --sleepers_;
  return !stopping_;
}

void ThreadPool::work() {
  uint64_t seen = 0;
  while (wait_for_loop(seen)) {
    uint64_t gate = gate_.load();
    seen = loop_of(gate);
    // A worker that comes late finds the gate closed.
    while (is_open(gate) && loop_of(gate) == seen && !gate_.compare_exchange_weak(gate, gate + kGuest)) {
    }
    if (!is_open(gate) || loop_of(gate) != seen) continue;
    run();
    const uint64_t left = gate_.fetch_sub(kGuest) - kGuest;
    if (!is_open(left) && guests_of(left) == 0 && caller_sleeps_) {
      const std::lock_guard lock(mutex_);
      done_.notify_all();
    }
  }
}

void ThreadPool::wake_sleepers(int64_t wanted) {
  int64_t wake = std::min<int64_t>(sleepers_.load(), wanted);
  if (wake <= 0) return;
  {
    const std::lock_guard lock(mutex_);
  }  // whoever has counted itself is waiting now
  for (; wake > 0; --wake) wake_.notify_one();
}

void ThreadPool::wait_for_guests() {
  const auto alone = [&] { return guests_of(gate_.load()) == 0; };
  if (alone() || spin(kEndSpin, alone)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_ = true;
  done_.wait(lock, alone);
  caller_sleeps_ = false;
}

void ThreadPool::run_shared(int64_t count, const std::function<void(int64_t)>& body) {
  if (workers_.empty())
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { work(); });
  if (Clock::now() - ended_ < kNextSpin)
    patience_.store(kPatience, std::memory_order_relaxed);
  else
    take_one(patience_);
  body_ = &body;
  count_ = count;
  next_ = 0;
  error_index_ = std::numeric_limits<int64_t>::max();
  gate_ = (loop_of(gate_) + 1) * kLoop + kOpen;
  wake_sleepers(count - 1);
  run();
  // Nobody comes in any more; when those who are in have left, every iteration has run.
  gate_ &= ~kOpen;
  wait_for_guests();
  ended_ = Clock::now();
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  if (threads_ == 1 || count == 1 || busy_.exchange(true)) {
    std::exception_ptr first;
    for (int64_t i = 0; i < count; ++i) {
      try {
        body(i);
      } catch (...) {
        if (!first) first = std::current_exception();
      }
    }
    if (first) std::rethrow_exception(first);
    return;
  }
  struct Release {
    std::atomic<bool>& busy;
    ~Release() { busy = false; }
  };
  const Release release{busy_};
  run_shared(count, body);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace quantaria
