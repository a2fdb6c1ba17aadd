#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "simt/emulator/context.h"
#include "simt/emulator/options.h"
#include "simt/emulator/sanitizer.h"
#include "simt/host/index.h"

/// The emulated GPU: blocks of warps of fibers, one for each CUDA thread, on one operating-system thread. A
/// fiber leaves only at a barrier, in a warp collective, in a spin loop or at its end.
namespace quantaria::simt::emulator {

struct Block;
struct Warp;

enum class State : uint8_t { ready, in_collective, at_barrier, done };

/// What a lane brings to a warp collective.
struct Operands {
  const void* in0 = nullptr;
  const void* in1 = nullptr;
  void* out = nullptr;
  int value = 0;
};

/// Carries out a collective for the lanes of `mask`.
using Collective = void (*)(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);

/// A cp.async whose bytes have not arrived.
struct AsyncCopy {
  std::byte* to;
  const std::byte* from;
  int bytes;
  bool wanted;
  uint32_t group;
};

struct Fiber {
  Context context;
  Stack stack;
  SanitizerFiber sanitizer;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint3 index{};
  unsigned lane = 0;
  State state = State::done;
  uint64_t priority = 0;
  Site where;
  int barrier = 0;

  Operands* operands = nullptr;
  Collective collective = nullptr;
  uint32_t mask = 0;
  const void* departure = nullptr;  // of the rendezvous that it waits in

  std::vector<AsyncCopy> copies;  // in flight, oldest first
  uint32_t group = 0;             // the one that is open
};

/// How the thread sanitizer is told of a rendezvous: all come before the last one, and the last one before
/// all that leave. They leave by another address each time, as whoever runs ahead may have come to the next
/// round already, which must not seem to come before those that are yet to leave this one.
struct Round {
  char arrivals = 0;
  char departures[2]{};
  unsigned count = 0;

  const void* next_departure() { return &departures[++count & 1]; }
};

struct Warp {
  std::array<Fiber*, kWarpSize> lanes{};
  uint32_t arrived = 0;
  Round round;
};

struct Barrier {
  int arrived = 0;
  Round round;
  int expected = 0;
  Site where;
  std::vector<Fiber*> waiting;
};

struct Block {
  uint3 index{};
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::array<Barrier, 16> barriers;
  std::unique_ptr<std::byte[]> memory;
  std::byte* shared = nullptr;  // inside memory, aligned
  size_t live = 0;
  bool active = false;
};

/// One launch under way.
class Machine {
 public:
  Machine(const Options& options, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);

  /// Runs all blocks. Throws the first Fault.
  void run();

  Fiber& current() { return *current_; }
  const Options& options() const { return options_; }
  Counts& counts() { return counts_; }
  size_t shared_bytes() const { return shared_bytes_; }
  std::mt19937_64& random() { return random_; }

  /// Lets the running fiber wait until somebody makes it ready.
  void block_current();
  void make_ready(Fiber& fiber);

 private:
  static void fiber_main();

  void start(Block& block, uint3 index);
  void finish(Block& block);
  bool turn_over_blocks(std::vector<uint3>& waiting);
  void abandon();
  Fiber* take_ready();
  Fiber*& slot(size_t i);
  void switch_to(Fiber* from, Fiber* to);
  std::string deadlock() const;

  Options options_;
  dim3 grid_;
  dim3 block_dim_;
  size_t shared_bytes_;
  const std::function<void()>& body_;
  Counts counts_;
  std::mt19937_64 random_;

  std::vector<Block*> resident_;
  std::vector<Fiber*> ready_;  // a ring; by priority a heap, which begins at its start
  size_t head_ = 0;
  size_t ready_count_ = 0;
  Fiber* current_ = nullptr;
  Context main_;
  SanitizerFiber main_sanitizer_;
  std::exception_ptr fault_;
};

/// The launch that this operating-system thread is in. A Fault without one: device code called from host
/// code.
Machine& machine();

/// Runs `body` once for each thread of the grid.
void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);

}  // namespace quantaria::simt::emulator
