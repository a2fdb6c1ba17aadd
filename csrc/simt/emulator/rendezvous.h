#pragma once

#include <cstdint>

#include "simt/emulator/machine.h"

/// Where threads of a block wait for each other.
namespace quantaria::simt::emulator {

/// Warp collectives: the last lane of `mask` to come carries it out for all. What lanes bring must agree in
/// mask and place (a Fault otherwise). `orders_memory`: what a lane did before is visible to the others
/// after; true of __syncwarp alone.
void collective(uint32_t mask, Collective execute, Operands& operands, bool orders_memory, const Site& site);

/// Block barriers: `threads` have to come; who does not `wait` is counted and goes on.
void barrier(int id, int threads, bool wait, const Site& site);

/// __syncthreads: of all threads of the block, at one place in the source.
void barrier_of_block(const Site& site);

/// A step of a spin loop: lets the others run.
void yield();

unsigned lane();

}  // namespace quantaria::simt::emulator
