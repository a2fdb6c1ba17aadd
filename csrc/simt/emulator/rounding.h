#pragma once

#include <cstdint>

/// Arithmetic of 16-bit floats as tensor-core GPUs do it: from exact values, rounded once.
namespace quantaria::simt::emulator {

/// a b + c of binary16 or bfloat16 bits, rounded to nearest even once. NaN gives a quiet NaN of some sign and
/// payload.
uint16_t fma_half(uint16_t a, uint16_t b, uint16_t c);
uint16_t fma_bfloat16(uint16_t a, uint16_t b, uint16_t c);

}  // namespace quantaria::simt::emulator
