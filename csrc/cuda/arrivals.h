#pragma once

#include <cstdint>

namespace quantaria::cuda {

/// How many counters a device has for launches whose blocks count each other (simt::last_to_arrive): unsigned
/// integers in its memory, 0 whenever its stream is between two launches.
inline constexpr int64_t kArrivalCounters = 1024;

}  // namespace quantaria::cuda
