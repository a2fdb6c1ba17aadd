#pragma once

#include <cstdint>
#include <functional>

#include "simt/emulator/fault.h"

namespace quantaria::simt::emulator {

class GlobalMemory;

/// Which of the threads that can go on does so. GPUs promise nothing: a kernel has to be right in every
/// order.
enum class Schedule : uint8_t {
  fifo,
  random,
  priority,  // random but fixed for each warp: some run as far ahead of the others as barriers let them
};

/// When the bytes of a cp.async arrive: with the wait for it at the latest, but they may be there at once.
enum class Arrival : uint8_t { late, eager, random };

/// How the launches of this operating-system thread are run.
struct Options {
  uint64_t seed = 1;
  Schedule schedule = Schedule::fifo;
  Arrival async_copies = Arrival::late;
  int resident_blocks = 1;        // interleaved; locks between blocks need as many as can wait for each other
  uint32_t poison = 0xffffffffu;  // fills shared memory before every block: NaN as any float
  uint64_t switch_budget = uint64_t{1} << 40;  // a launch that needs more has a thread that spins for ever
  /// Where global pointers may point, for the accesses that the host sees; null leaves that to the address
  /// sanitizer.
  const GlobalMemory* global = nullptr;
  /// Asked at every barrier and wait; false skips it. For tests that ask whether each of them is needed.
  std::function<bool(const Site&)> keeps_sync;
};

Options& options();

/// What the last launch of this operating-system thread did.
struct Counts {
  uint64_t switches = 0;
  uint64_t collectives = 0;
  uint64_t barriers = 0;
  uint64_t async_copies = 0;
  uint64_t bank_conflicts = 0;  // of ldmatrix: extra passes over shared memory
};

const Counts& last_counts();

}  // namespace quantaria::simt::emulator
