#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "ops/hadamard/hadamard_quantize_cuda.h"

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
  decltype(&hadamard_quantize_int_cuda) quantize_int;
  decltype(&hadamard_quantize_mx_cuda) quantize_mx;
};
inline constexpr HadamardLaunchers kHadamardLaunchers{hadamard_cuda, hadamard_workspace,
                                                      hadamard_quantize_int_cuda, hadamard_quantize_mx_cuda};

}  // namespace quantaria::ops
