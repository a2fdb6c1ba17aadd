#pragma once

#include <string_view>

namespace quantaria {

/// Instruction sets that kernels are compiled for, each including the ones before it.
enum class Isa { scalar, avx2, avx512 };

std::string_view name_of(Isa isa);

/// The best set that this machine has.
Isa detected_isa();

/// The set that kernels use: the detected one, or a lower one named by QUANTARIA_ISA (for tests).
Isa selected_isa();

/// Lowers or restores the choice at run time, for tests that compare instruction sets in one process.
/// Throws ERR_UNSUPPORTED above the detected set.
void select_isa(Isa isa);

}  // namespace quantaria
