// Compiled without the thread sanitizer (CMakeLists.txt; why: sanitizer.h). While fibers run, nothing here
// allocates or moves memory through the C library, which would be seen all the same: hence the ring of fixed
// size, and vectors that reserve what they can come to hold.
#include "simt/emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <utility>

#include "simt/emulator/async_copies.h"
#include "simt/emulator/guard_band.h"

namespace quantaria::simt::emulator {
namespace {

thread_local Machine* running = nullptr;

/// Blocks with their fibers and stacks, kept for later launches.
std::vector<std::unique_ptr<Block>>& kept_blocks() {
  static thread_local std::vector<std::unique_ptr<Block>> blocks;
  return blocks;
}

Counts& counts_of_last_launch() {
  static thread_local Counts counts;
  return counts;
}

constexpr size_t kSharedAlignment = 128;
constexpr size_t kReservedCopies = 256;

std::string name_of(const Fiber& fiber) {
  const uint3 b = fiber.block->index;
  const uint3 t = fiber.index;
  return "block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) +
         ") thread (" + std::to_string(t.x) + "," + std::to_string(t.y) + "," + std::to_string(t.z) + ")";
}

bool comes_after(const Fiber* a, const Fiber* b) { return a->priority < b->priority; }

}  // namespace

Options& options() {
  static thread_local Options of_this_thread;
  return of_this_thread;
}

const Counts& last_counts() { return counts_of_last_launch(); }

Machine& machine() {
  if (!running) throw Fault("device code was called outside of a launch");
  return *running;
}

std::string text(const Site& site) {
  std::string file = site.file_name();
  file.erase(0, file.rfind('/') + 1);
  return file + ":" + std::to_string(site.line()) + ":" + std::to_string(site.column());
}

void fault(const std::string& what, const Site& site) {
  throw Fault(name_of(machine().current()) + ": " + what + ", " + text(site));
}

Machine::Machine(const Options& options, dim3 grid, dim3 block, size_t shared,
                 const std::function<void()>& body)
    : options_(options),
      grid_(grid),
      block_dim_(block),
      shared_bytes_(shared),
      body_(body),
      random_(options.seed) {}

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
  constexpr uint64_t kMostThreads = 1024;
  constexpr unsigned kMostBlocksYZ = 65535;
  constexpr size_t kMostSharedBytes = size_t{163} << 10;  // of a block on sm_80
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || threads % kWarpSize != 0)
    throw Fault("launch of blocks of " + std::to_string(threads) +
                " threads, whole warps up to 1024 expected");
  if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y - 1 >= kMostBlocksYZ || grid.z - 1 >= kMostBlocksYZ)
    throw Fault("launch of a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                std::to_string(grid.z) + " blocks, at most 2^31 - 1 x 65535 x 65535 and not empty expected");
  if (shared > kMostSharedBytes)
    throw Fault("launch with " + std::to_string(shared) + " bytes of shared memory, sm_80 has " +
                std::to_string(kMostSharedBytes) + " for a block");
  if (running) throw Fault("a launch inside a kernel");
  Machine machine(options(), grid, block, shared, body);
  running = &machine;
  try {
    machine.run();
  } catch (...) {
    running = nullptr;
    throw;
  }
  running = nullptr;
  counts_of_last_launch() = machine.counts();
}

void Machine::run() {
  blockDim = block_dim_;
  gridDim = grid_;
  main_sanitizer_.adopt();
  // Blocks in any order; the next one is the last of the list.
  std::vector<uint3> waiting;
  waiting.reserve(size_t{grid_.x} * grid_.y * grid_.z);
  for (unsigned z = 0; z < grid_.z; ++z)
    for (unsigned y = 0; y < grid_.y; ++y)
      for (unsigned x = 0; x < grid_.x; ++x) waiting.push_back({x, y, z});
  if (options_.schedule != Schedule::fifo) std::shuffle(waiting.begin(), waiting.end(), random_);
  std::reverse(waiting.begin(), waiting.end());

  const size_t resident =
      std::min(static_cast<size_t>(std::max(options_.resident_blocks, 1)), waiting.size());
  auto& kept = kept_blocks();
  while (kept.size() < resident) kept.push_back(std::make_unique<Block>());
  for (size_t i = 0; i < resident; ++i) resident_.push_back(kept[i].get());
  ready_.resize(resident * block_dim_.x * block_dim_.y * block_dim_.z);
  for (Block* block : resident_) {
    start(*block, waiting.back());
    waiting.pop_back();
  }
  do {
    while (Fiber* next = fault_ ? nullptr : take_ready()) switch_to(nullptr, next);
  } while (!fault_ && turn_over_blocks(waiting));
  abandon();
  if (fault_) std::rethrow_exception(fault_);
}

/// Nobody can go on: puts waiting blocks in the place of those that are done. False once all are.
bool Machine::turn_over_blocks(std::vector<uint3>& waiting) {
  bool started = false;
  bool live = false;
  for (Block* block : resident_) {
    if (!block->active) continue;
    live = live || block->live > 0;
    if (block->live > 0) continue;
    try {
      finish(*block);
    } catch (const Fault&) {
      fault_ = std::current_exception();
      return false;
    }
    if (waiting.empty()) continue;
    start(*block, waiting.back());
    waiting.pop_back();
    started = true;
  }
  if (live && !started) fault_ = std::make_exception_ptr(Fault(deadlock()));
  return started;
}

void Machine::start(Block& block, uint3 index) {
  const unsigned threads = block_dim_.x * block_dim_.y * block_dim_.z;
  block.index = index;
  block.active = true;
  block.live = threads;
  for (Barrier& barrier : block.barriers) {
    barrier.arrived = 0;
    barrier.waiting.clear();
    barrier.waiting.reserve(threads);
  }
  block.memory = std::make_unique_for_overwrite<std::byte[]>(kSharedAlignment + shared_bytes_ + kGuardBand);
  const auto address = reinterpret_cast<uintptr_t>(block.memory.get());
  block.shared = block.memory.get() + (kSharedAlignment - address % kSharedAlignment) % kSharedAlignment;
  for (size_t i = 0; i < shared_bytes_; ++i)
    block.shared[i] = static_cast<std::byte>(options_.poison >> 8 * (i % 4));
  draw_guard_band(block.shared + shared_bytes_);

  block.warps.assign(threads / kWarpSize, {});
  while (block.fibers.size() < threads) block.fibers.push_back(std::make_unique<Fiber>());
  std::vector<uint64_t> warp_priorities(block.warps.size());
  for (uint64_t& priority : warp_priorities) priority = random_() >> 8;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *block.fibers[t];
    fiber.block = &block;
    fiber.warp = &block.warps[t / kWarpSize];
    fiber.lane = t % kWarpSize;
    fiber.warp->lanes[fiber.lane] = &fiber;
    fiber.index = {t % block_dim_.x, t / block_dim_.x % block_dim_.y, t / block_dim_.x / block_dim_.y};
    fiber.copies.clear();
    fiber.copies.reserve(kReservedCopies);
    fiber.group = 0;
    fiber.operands = nullptr;
    fiber.priority = (warp_priorities[t / kWarpSize] << 6) + (random_() & 63);
    fiber.sanitizer.start(fiber.stack.bottom(), Stack::size());
    prepare(fiber.context, fiber.stack.bottom(), Stack::size(), fiber_main);
    make_ready(fiber);
  }
  order_release(&block);
}

void Machine::finish(Block& block) {
  block.active = false;
  order_acquire(this);
  if (!guard_band_intact(block.shared + shared_bytes_))
    throw Fault("block (" + std::to_string(block.index.x) + "," + std::to_string(block.index.y) + "," +
                std::to_string(block.index.z) + ") wrote past the end of its " +
                std::to_string(shared_bytes_) + " bytes of shared memory");
}

/// After a fault: fibers that stand in the middle of the kernel are left there. Kernels own nothing.
void Machine::abandon() {
  for (Block* block : resident_) {
    if (block->active && fault_)
      for (const auto& fiber : block->fibers)
        if (fiber->state != State::done) {
          fiber->sanitizer.abandon(main_sanitizer_, this);
          fiber->state = State::done;
        }
    block->active = false;
  }
  order_acquire(this);
  for (Block* block : resident_) {
    unpoison(block->shared, shared_bytes_ + kGuardBand);
    block->memory.reset();
  }
}

void Machine::fiber_main() {
  Machine& machine = *running;
  Fiber& self = *machine.current_;
  self.sanitizer.enter(machine.main_sanitizer_);
  order_acquire(self.block);
  try {
    machine.body_();
    require_no_copies_in_flight(self);
  } catch (...) {
    if (!machine.fault_) machine.fault_ = std::current_exception();
  }
  order_release(&machine);
  self.state = State::done;
  --self.block->live;
  machine.switch_to(&self, machine.fault_ ? nullptr : machine.take_ready());
  std::terminate();  // nobody comes back here
}

Fiber*& Machine::slot(size_t i) {
  const size_t place = head_ + i;
  return ready_[place < ready_.size() ? place : place - ready_.size()];
}

void Machine::make_ready(Fiber& fiber) {
  fiber.state = State::ready;
  slot(ready_count_++) = &fiber;
  if (options_.schedule == Schedule::priority)
    std::push_heap(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(ready_count_), comes_after);
}

Fiber* Machine::take_ready() {
  if (ready_count_ == 0) return nullptr;
  if (options_.schedule == Schedule::priority) {
    std::pop_heap(ready_.begin(), ready_.begin() + static_cast<ptrdiff_t>(ready_count_), comes_after);
    return ready_[--ready_count_];
  }
  const size_t chosen = options_.schedule == Schedule::random ? random_() % ready_count_ : 0;
  std::swap(slot(chosen), slot(0));
  Fiber* const fiber = slot(0);
  head_ = head_ + 1 == ready_.size() ? 0 : head_ + 1;
  --ready_count_;
  return fiber;
}

void Machine::block_current() {
  Fiber& self = *current_;
  if (++counts_.switches > options_.switch_budget)
    throw Fault(name_of(self) + ": the launch does not end: " + std::to_string(options_.switch_budget) +
                " switches between threads");
  Fiber* const next = fault_ ? nullptr : take_ready();
  if (next != &self) switch_to(&self, next);
}

/// Null is the operating-system thread.
void Machine::switch_to(Fiber* from, Fiber* to) {
  SanitizerFiber& leaving = from ? from->sanitizer : main_sanitizer_;
  leaving.leave(to ? to->sanitizer : main_sanitizer_, from && from->state == State::done);
  if (to) {
    current_ = to;
    threadIdx = to->index;
    blockIdx = to->block->index;
  }
  switch_context(from ? from->context : main_, to ? to->context : main_);
  leaving.enter(main_sanitizer_);
}

std::string Machine::deadlock() const {
  std::map<std::string, int> groups;
  for (const Block* block : resident_) {
    if (!block->active) continue;
    for (size_t t = 0; t < block->warps.size() * kWarpSize; ++t) {
      const Fiber& fiber = *block->fibers[t];
      if (fiber.state == State::done)
        ++groups["ended"];
      else if (fiber.state == State::at_barrier)
        ++groups["at barrier " + std::to_string(fiber.barrier) + ", " + text(fiber.where)];
      else
        ++groups["in a warp collective, " + text(fiber.where)];
    }
  }
  std::string message = "deadlock:";
  for (const auto& [where, threads] : groups)
    message += " [" + std::to_string(threads) + " threads " + where + "]";
  return message;
}

}  // namespace quantaria::simt::emulator
