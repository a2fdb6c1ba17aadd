#pragma once

#include "simt/emulator/machine.h"

/// What the warp collectives do, for all their lanes at once. Layouts of fragments are those of the PTX
/// manual, section "Matrix fragments"; which lane holds what is spelled out in simt/host/matrix.h.
namespace quantaria::simt::emulator {

/// in0: a, uint32_t[4]; in1: b, uint32_t[2]; out: d, float[4]. Products exact, summed in float64, rounded
/// once.
void mma_half(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);
void mma_bfloat16(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);

/// in0: a, uint32_t[4]; in1: b, uint32_t[2]; out: d, int32_t[4]
void mma_int8(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);

/// in0: the lane's row, uint32_t[4], already read; in1: where it lay; out: uint32_t[value]
void load_matrix(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);
void load_matrix_transposed(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);

/// in0 of lane `value` to out, 8 bytes
void shuffle(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);

/// out: uint32_t, one bit for each lane whose value is not 0
void ballot(uint32_t mask, Operands* const (&lanes)[kWarpSize], const Site& site);

}  // namespace quantaria::simt::emulator
