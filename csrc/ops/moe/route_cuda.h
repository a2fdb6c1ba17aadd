#pragma once

#include <cstdint>

#include "ops/moe/route.h"

namespace quantaria::ops {

/// The contract of route (ops/moe/route.h), in device memory; `stream` is a simt::Stream. Indices, counts,
/// offsets and order are those of the CPU; a weight may differ from it by one float32 rounding. The same bits
/// at every run: slots are sorted without atomics. No host synchronisation.
///
/// workspace: slot_sort_workspace bytes of device memory, which the call may use until the stream has come
/// past it.
void route_cuda(void* stream, const ConstMatrix& logits, const RouteOptions& options, int32_t* indices,
                float* weights, const SlotOrder& slots, std::byte* workspace);

/// The contract of sort_slots, but for the error: *wrong, if it is not null, is set to 1 where an index is
/// not in 0..experts-1, and else left as it is.
void sort_slots_cuda(void* stream, const int32_t* indices, int64_t count, int64_t experts,
                     const SlotOrder& to, uint32_t* wrong, std::byte* workspace);
int64_t slot_sort_workspace(int64_t count, int64_t experts);

}  // namespace quantaria::ops
