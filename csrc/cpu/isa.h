#pragma once

#include <cstddef>
#include <string_view>

namespace quantaria {

/// Instruction sets that kernels are compiled for, each including the ones before it: avx2 with FMA, avx512
/// with BW, VL and DQ, avx512vnni with the byte dot product of VNNI, avx512bf16 with that of bfloat16.
enum class Isa { scalar, avx2, avx512, avx512vnni, avx512bf16 };
inline constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512vnni, Isa::avx512bf16};

std::string_view name_of(Isa isa);

/// The best set that this machine has.
Isa detected_isa();

/// The set that kernels use: the detected one, or a lower one named by QUANTARIA_ISA (for tests).
Isa selected_isa();

/// Lowers or restores the choice at run time, for tests that compare instruction sets in one process.
/// Throws ERR_UNSUPPORTED above the detected set.
void select_isa(Isa isa);

/// The entry of a table in the order of Isa for the selected set; past its end the last one, as a kernel need
/// not be compiled anew for what it does not use.
template <class Entry, size_t n>
Entry of_selected_isa(const Entry (&table)[n]) {
  const auto isa = static_cast<size_t>(selected_isa());
  return table[isa < n ? isa : n - 1];
}

}  // namespace quantaria
