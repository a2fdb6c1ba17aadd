// Compiled without the thread sanitizer, like machine.cc.
#include "simt/emulator/async_copies.h"

#include <string>

#include "simt/emulator/machine.h"

namespace quantaria::simt::emulator {
namespace {

bool arrives_at_once(Machine& machine) {
  switch (machine.options().async_copies) {
    case Arrival::late:
      return false;
    case Arrival::eager:
      return true;
    case Arrival::random:
      break;
  }
  return (machine.random()() & 1) != 0;
}

}  // namespace

void begin_copy(void* to, const void* from, int bytes, bool wanted, const Site& site) {
  Machine& here = machine();
  Fiber& self = here.current();
  auto* const target = static_cast<std::byte*>(to);
  const std::byte* const shared = self.block->shared;
  if (target < shared || target + bytes > shared + here.shared_bytes())
    fault("cp.async to outside of shared memory", site);
  ++here.counts().async_copies;
  const auto* const source = static_cast<const std::byte*>(from);
  if (arrives_at_once(here)) return transfer(target, source, bytes, wanted);
  spoil(target, bytes, here.options().poison);
  self.copies.push_back({target, source, bytes, wanted, self.group});
}

void commit_copies() { ++machine().current().group; }

void wait_for_copies(int pending, const Site& site) {
  Machine& here = machine();
  if (here.options().keeps_sync && !here.options().keeps_sync(site)) return;
  Fiber& self = here.current();
  size_t arrived = 0;
  for (const AsyncCopy& copy : self.copies) {
    if (copy.group + static_cast<uint32_t>(pending) >= self.group) break;
    transfer(copy.to, copy.from, copy.bytes, copy.wanted);
    ++arrived;
  }
  // By hand: std::vector::erase is a memmove, which the thread sanitizer sees even from here.
  const size_t left = self.copies.size() - arrived;
  for (size_t i = 0; arrived > 0 && i < left; ++i) {
    volatile AsyncCopy* const slot = &self.copies[i];
    const AsyncCopy& copy = self.copies[arrived + i];
    slot->to = copy.to;
    slot->from = copy.from;
    slot->bytes = copy.bytes;
    slot->wanted = copy.wanted;
    slot->group = copy.group;
  }
  while (self.copies.size() > left) self.copies.pop_back();
}

void require_no_copies_in_flight(const Fiber& fiber) {
  if (fiber.copies.empty()) return;
  throw Fault("a thread ends with " + std::to_string(fiber.copies.size()) +
              " cp.async in flight: cp_async_wait<0> is missing");
}

}  // namespace quantaria::simt::emulator
