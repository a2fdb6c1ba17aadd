#include "simt/emulator/context.h"

#include <sys/mman.h>

#include <cstdint>

#include "core/error.h"
#include "simt/emulator/sanitizer.h"

namespace quantaria::simt::emulator {

#if defined(__x86_64__)

// Only what a call keeps: everything else the compiler has saved around it. ucontext would do a system call a
// switch, which costs more than all of the rest.
extern "C" void quantaria_simt_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type quantaria_simt_switch,@function
.hidden quantaria_simt_switch
.globl quantaria_simt_switch
quantaria_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size quantaria_simt_switch,.-quantaria_simt_switch
)");

void prepare(Context& context, std::byte* stack, size_t size, void (*entry)()) {
  constexpr size_t kSavedRegisters = 6;
  auto** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // a return address that ends backtraces, and the alignment that a call leaves
  *--top = reinterpret_cast<void*>(entry);
  for (size_t i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) {
  quantaria_simt_switch(&from.stack_pointer, to.stack_pointer);
}

#else

void prepare(Context& context, std::byte* stack, size_t size, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = size;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

namespace {
constexpr size_t kGuard = 4096;
}

size_t Stack::size() { return size_t{kSanitized ? 256 : 64} << 10; }

Stack::Stack() {
  void* const mapping = mmap(nullptr, kGuard + size(), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) fail(ErrorCode::out_of_memory, "no stack for an emulated thread");
  mprotect(mapping, kGuard, PROT_NONE);
  bottom_ = static_cast<std::byte*>(mapping) + kGuard;
}

Stack::~Stack() {
  unpoison(bottom_, size());  // the next mapping here is somebody else's
  munmap(bottom_ - kGuard, kGuard + size());
}

}  // namespace quantaria::simt::emulator
