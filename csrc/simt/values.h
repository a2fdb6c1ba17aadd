#pragma once

#include <cstdint>

/// The 16-bit floats of kernels, held as their bits, on either side of simt.h.
namespace quantaria::simt {

/// IEEE binary16.
struct Half {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

}  // namespace quantaria::simt
