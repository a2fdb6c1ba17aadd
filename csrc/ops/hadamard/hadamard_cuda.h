#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace quantaria::ops {

/// The contract of hadamard (hadamard.h) in device memory, the same bits: sums in the order of the CPU's.
/// x [rows, n] and y contiguous; x may be y. Rows of up to 16384 elements are transformed in shared
/// memory, in one launch; longer ones pass by pass through workspace, hadamard_workspace bytes, which the
/// call may use until the stream has come past it. `stream` is a simt::Stream.
void hadamard_cuda(void* stream, DType dtype, int64_t rows, int64_t n, float scale, const std::byte* x,
                   std::byte* y, std::byte* workspace);
int64_t hadamard_workspace(int64_t rows, int64_t n);

struct HadamardLaunchers {
  decltype(&hadamard_cuda) transform;
  decltype(&hadamard_workspace) workspace;
};
inline constexpr HadamardLaunchers kHadamardLaunchers{hadamard_cuda, hadamard_workspace};

}  // namespace quantaria::ops
