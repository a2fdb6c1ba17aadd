#pragma once

#include <cstdint>
#include <cstring>

#include "simt/emulator/fragments.h"
#include "simt/emulator/rendezvous.h"
#include "simt/host/index.h"
#include "simt/host/memory.h"

/// Barriers, locks, shuffles and votes. The names are those of simt/cuda/sync.h and of CUDA C++ itself.
namespace quantaria::simt {

/// Waits at barrier Id (1 to 15; 0 is __syncthreads) until `threads` threads, whole warps, have come.
template <int Id>
void barrier_wait(int threads, const Site& site = Site::current()) {
  static_assert(Id >= 1 && Id <= 15);
  emulator::barrier(Id, threads, true, site);
}

/// Is counted at barrier Id and goes on.
template <int Id>
void barrier_arrive(int threads, const Site& site = Site::current()) {
  static_assert(Id >= 1 && Id <= 15);
  emulator::barrier(Id, threads, false, site);
}

/// Reads a lock in global memory: what its last release_add came after is visible from here on.
inline int load_acquire(const int* lock) {
  const int value = __atomic_load_n(lock, __ATOMIC_ACQUIRE);
  emulator::yield();
  return value;
}

/// Adds to a lock in global memory once all that this thread wrote, and has seen written, is visible.
inline void release_add(int* lock, int value) { __atomic_fetch_add(lock, value, __ATOMIC_ACQ_REL); }

/// Counts whoever comes, by a counter in global memory that is 0 before the first of `expected`. The last one
/// is told so, leaves 0 behind, and what the others wrote, or had seen written, is visible to it from here
/// on.
inline bool last_to_arrive(unsigned* counter, unsigned expected, const Site& site = Site::current()) {
  emulator::require_aligned(counter, alignof(unsigned), "counter", site);
  emulator::require_global(counter, sizeof *counter, "counter", site);
  const unsigned before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
  if (before + 1 < expected) return false;
  if (before >= expected) emulator::fault("more have arrived than were expected", site);
  __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
  return true;
}

namespace emulator {

template <class T>
T shuffled(uint32_t mask, T value, unsigned source, const Site& site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t in = 0;
  uint64_t out = 0;
  std::memcpy(&in, &value, sizeof value);
  Operands operands{&in, nullptr, &out, static_cast<int>(source)};
  collective(mask, shuffle, operands, false, site);
  std::memcpy(&value, &out, sizeof value);
  return value;
}

}  // namespace emulator
}  // namespace quantaria::simt

inline void __syncthreads(const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  quantaria::simt::emulator::barrier_of_block(site);
}

inline void __syncwarp(uint32_t mask = ~0u,
                       const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  quantaria::simt::emulator::Operands none;
  quantaria::simt::emulator::collective(mask, nullptr, none, true, site);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  const unsigned segment = quantaria::simt::emulator::lane() & ~static_cast<unsigned>(width - 1);
  return quantaria::simt::emulator::shuffled(mask, value,
                                             segment + static_cast<unsigned>(source & (width - 1)), site);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32,
                  const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  const unsigned lane = quantaria::simt::emulator::lane();
  const unsigned source = lane ^ static_cast<unsigned>(bits);
  const auto segment = ~static_cast<unsigned>(width - 1);
  return quantaria::simt::emulator::shuffled(mask, value,
                                             (source & segment) > (lane & segment) ? lane : source, site);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int width = 32,
                   const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  const unsigned lane = quantaria::simt::emulator::lane();
  const bool inside = (lane & static_cast<unsigned>(width - 1)) + by < static_cast<unsigned>(width);
  return quantaria::simt::emulator::shuffled(mask, value, inside ? lane + by : lane, site);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int width = 32,
                 const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  const unsigned lane = quantaria::simt::emulator::lane();
  const bool inside = (lane & static_cast<unsigned>(width - 1)) >= by;
  return quantaria::simt::emulator::shuffled(mask, value, inside ? lane - by : lane, site);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  uint32_t votes = 0;
  quantaria::simt::emulator::Operands operands{nullptr, nullptr, &votes, predicate};
  quantaria::simt::emulator::collective(mask, quantaria::simt::emulator::ballot, operands, false, site);
  return votes;
}

inline int __any_sync(uint32_t mask, int predicate,
                      const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(uint32_t mask, int predicate,
                      const quantaria::simt::Site& site = quantaria::simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

inline int atomicAdd(int* to, int value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned* to, unsigned value) {
  return __atomic_fetch_or(to, value, __ATOMIC_RELAXED);
}
inline unsigned long long atomicMax(unsigned long long* to, unsigned long long value) {
  unsigned long long seen = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (seen < value &&
         !__atomic_compare_exchange_n(to, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return seen;
}
