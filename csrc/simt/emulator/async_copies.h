#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/emulator/fault.h"

/// cp.async: a copy that is under way until its group is waited for. Its target is undefined from the start
/// to then, and its source is read some time in between.
namespace quantaria::simt::emulator {

struct Fiber;

void begin_copy(void* to, const void* from, int bytes, bool wanted, const Site& site);
void commit_copies();
void wait_for_copies(int pending, const Site& site);

/// A thread must not end before its copies have: the block that comes next may get their target.
void require_no_copies_in_flight(const Fiber& fiber);

// In transfer.cc, which every sanitizer instruments: these accesses are the kernel's.

/// The target while the copy is under way.
void spoil(std::byte* to, int bytes, uint32_t pattern);
/// The copy itself; zeros if not wanted.
void transfer(std::byte* to, const std::byte* from, int bytes, bool wanted);

}  // namespace quantaria::simt::emulator
