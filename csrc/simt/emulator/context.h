#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace quantaria::simt::emulator {

/// A suspended computation: where its stack stands.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t state{};
#endif
};

/// Makes `context` one that starts `entry` on the given stack when it is first switched to. `entry` must not
/// return.
void prepare(Context& context, std::byte* stack, size_t size, void (*entry)());

/// Suspends the running computation as `from` and goes on with `to`.
void switch_context(Context& from, Context& to);

/// A stack of its own mapping, with a page below it that faults.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  std::byte* bottom() const { return bottom_; }
  static size_t size();

 private:
  std::byte* bottom_;
};

}  // namespace quantaria::simt::emulator
