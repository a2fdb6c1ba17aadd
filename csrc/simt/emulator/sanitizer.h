#pragma once

#include <cstddef>

// What the sanitizers have to be told about fibers, as functions that do nothing in other builds: no #if
// elsewhere.
//
// QUANTARIA_THREAD_SANITIZER comes from the build, not from the compiler: the scheduler itself is compiled
// without the thread sanitizer (its own bookkeeping would look like races between the threads that it runs)
// and yet tells it of fibers. There, a switch orders nothing. Only what orders memory on a GPU is told as
// such, so that a kernel's missing barrier is a data race in whatever order its threads happened to run.

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(QUANTARIA_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace quantaria::simt::emulator {

#if defined(__SANITIZE_ADDRESS__) || defined(QUANTARIA_THREAD_SANITIZER)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

/// Accesses are reported from now on.
inline void poison([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(from, bytes);
#endif
}

inline void unpoison([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(from, bytes);
#endif
}

/// What this thread did so far happens before what others do after they acquire the same address.
inline void order_release([[maybe_unused]] const void* address) {
#if defined(QUANTARIA_THREAD_SANITIZER)
  __tsan_release(const_cast<void*>(address));
#endif
}

inline void order_acquire([[maybe_unused]] const void* address) {
#if defined(QUANTARIA_THREAD_SANITIZER)
  __tsan_acquire(const_cast<void*>(address));
#endif
}

/// The sanitizers' view of one fiber, or of the operating-system thread that runs them.
class SanitizerFiber {
 public:
  /// For a fiber that starts anew on this stack, where its first frames of last time never returned. (All of
  /// it would be 32 KB of shadow to clear for each thread of each block.)
  void start(const void* stack, size_t size) {
    constexpr size_t kFirstFrames = 8 << 10;
    const size_t cleared = stack_ == stack ? kFirstFrames : size;
    unpoison(static_cast<const char*>(stack) + size - cleared, cleared);
    stack_ = stack;
    size_ = size;
#if defined(QUANTARIA_THREAD_SANITIZER)
    if (!thread_) thread_ = __tsan_create_fiber(0);  // 0.6 ms: kept for the fibers that reuse this one
#endif
  }

  /// For the operating-system thread.
  void adopt() {
#if defined(QUANTARIA_THREAD_SANITIZER)
    thread_ = __tsan_get_current_fiber();
#endif
  }

  /// Right before the switch from this one. `ends`: it will not come back.
  void leave([[maybe_unused]] SanitizerFiber& next, [[maybe_unused]] bool ends) {
#if defined(QUANTARIA_THREAD_SANITIZER)
    constexpr unsigned kOrdersNothing = 1;
    __tsan_switch_to_fiber(next.thread_, kOrdersNothing);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack_, next.stack_, next.size_);
#endif
  }

  /// Right after the switch to this one.
  void enter([[maybe_unused]] SanitizerFiber& main) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    fake_stack_ = nullptr;
    if (!main.stack_) {  // the first switch of a launch comes from the operating-system thread
      main.stack_ = bottom;
      main.size_ = size;
    }
#endif
  }

  /// A fiber that a fault left in the middle: what it did is over.
  void abandon([[maybe_unused]] SanitizerFiber& main, [[maybe_unused]] const void* end) {
    unpoison(stack_, size_);
#if defined(QUANTARIA_THREAD_SANITIZER)
    if (!thread_) return;
    __tsan_switch_to_fiber(thread_, 1);
    __tsan_release(const_cast<void*>(end));
    __tsan_switch_to_fiber(main.thread_, 1);
    __tsan_destroy_fiber(thread_);
    thread_ = nullptr;
#endif
  }

  void destroy() {
#if defined(QUANTARIA_THREAD_SANITIZER)
    if (thread_) __tsan_destroy_fiber(thread_);
    thread_ = nullptr;
#endif
  }

 private:
  [[maybe_unused]] const void* stack_ = nullptr;
  [[maybe_unused]] size_t size_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] void* thread_ = nullptr;
};

}  // namespace quantaria::simt::emulator
