// Compiled without the thread sanitizer, like machine.cc.
#include "simt/emulator/rendezvous.h"

#include <string>

namespace quantaria::simt::emulator {
namespace {

bool same_place(const Site& a, const Site& b) { return a.line() == b.line() && a.column() == b.column(); }

bool skipped(const Site& site) {
  const auto& keeps = machine().options().keeps_sync;
  return keeps && !keeps(site);
}

}  // namespace

unsigned lane() { return machine().current().lane; }

void yield() {
  Machine& here = machine();
  here.current().priority /= 2;  // GPUs promise that others get on while one spins
  here.make_ready(here.current());
  here.block_current();
}

void collective(uint32_t mask, Collective execute, Operands& operands, bool orders_memory, const Site& site) {
  Machine& here = machine();
  Fiber& self = here.current();
  Warp& warp = *self.warp;
  if ((mask >> self.lane & 1) == 0) fault("a warp collective whose mask lacks the calling lane", site);
  if (orders_memory && skipped(site)) return;
  self.operands = &operands;
  self.collective = execute;
  self.mask = mask;
  self.where = site;
  self.state = State::in_collective;
  warp.arrived |= 1u << self.lane;
  if (orders_memory) order_release(&warp.round.arrivals);
  if ((warp.arrived & mask) != mask) {
    here.block_current();
    if (orders_memory) order_acquire(self.departure);
  } else {
    Operands* lanes[kWarpSize]{};
    for (unsigned i = 0; i < kWarpSize; ++i) {
      if ((mask >> i & 1) == 0) continue;
      const Fiber& other = *warp.lanes[i];
      if (other.collective != execute || other.mask != mask || !same_place(other.where, site))
        fault("a divergent warp collective: lane " + std::to_string(i) + " is at " + text(other.where), site);
      lanes[i] = other.operands;
    }
    if (execute) execute(mask, lanes, site);
    warp.arrived &= ~mask;
    const void* const departure = warp.round.next_departure();
    if (orders_memory) {
      order_acquire(&warp.round.arrivals);
      order_release(departure);
    }
    ++here.counts().collectives;
    for (unsigned i = 0; i < kWarpSize; ++i)
      if ((mask >> i & 1) != 0 && warp.lanes[i] != &self) {
        warp.lanes[i]->departure = departure;
        here.make_ready(*warp.lanes[i]);
      }
    self.state = State::ready;
  }
}

void barrier(int id, int threads, bool wait, const Site& site) {
  if (skipped(site)) return;
  Machine& here = machine();
  Fiber& self = here.current();
  Barrier& barrier = self.block->barriers[static_cast<size_t>(id)];
  if (threads <= 0 || threads % static_cast<int>(kWarpSize) != 0)
    fault("a barrier of " + std::to_string(threads) + " threads, whole warps expected", site);
  if (barrier.arrived > 0 && barrier.expected != threads)
    fault("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads, of " +
              std::to_string(barrier.expected) + " at " + text(barrier.where),
          site);
  barrier.expected = threads;
  barrier.where = site;
  ++barrier.arrived;
  order_release(&barrier.round.arrivals);
  if (barrier.arrived == threads) {
    barrier.arrived = 0;
    // Who only arrives has seen nothing of the others, so it cannot pass that on: they see to it themselves.
    const void* const departure = wait ? barrier.round.next_departure() : &barrier.round.arrivals;
    if (wait) {
      order_acquire(&barrier.round.arrivals);
      order_release(departure);
    }
    ++here.counts().barriers;
    for (Fiber* fiber : barrier.waiting) {
      fiber->departure = departure;
      here.make_ready(*fiber);
    }
    barrier.waiting.clear();
    if (wait) {
      // Not straight on: whoever came last would otherwise always be the first behind the barrier.
      here.make_ready(self);
      here.block_current();
    }
  } else if (wait) {
    self.state = State::at_barrier;
    self.where = site;
    self.barrier = id;
    barrier.waiting.push_back(&self);
    here.block_current();
    order_acquire(self.departure);
  }
}

void barrier_of_block(const Site& site) {
  const Barrier& whole = machine().current().block->barriers[0];
  if (whole.arrived > 0 && !same_place(whole.where, site) && !skipped(site))
    fault("a divergent __syncthreads: others are at " + text(whole.where), site);
  barrier(0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), true, site);
}

}  // namespace quantaria::simt::emulator
