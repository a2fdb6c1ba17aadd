#pragma once

#include "ops/dequant_matmul/coded_fetch.cuh"

/// A run of 32 columns on tensor cores. A lane holds of each factor the rows g and, of the one that has 16
/// rows of a fragment, g + 8: four registers a row, in the order in which decoders pair columns.
namespace quantaria::ops {

/// x from shared memory, its columns paired as the decoder's.
template <class Decoder, class Stage, int LaneRows>
__device__ __forceinline__ void load_x(const Stage& stage, int row, int run, int t,
                                       uint32_t (&x)[LaneRows][4]) {
#pragma unroll
  for (int half = 0; half < LaneRows; ++half) {
    const int r = row + half * 8;
    const auto v = simt::load_shared<uint4>(&stage.x[r][((run ^ (r & 1)) * 4 + t) * 8]);
    if constexpr (Decoder::kFarPairs) {
      x[half][0] = simt::prmt(v.x, v.z, 0x5410);
      x[half][1] = simt::prmt(v.x, v.z, 0x7632);
      x[half][2] = simt::prmt(v.y, v.w, 0x5410);
      x[half][3] = simt::prmt(v.y, v.w, 0x7632);
    } else {
      x[half][0] = v.x;
      x[half][1] = v.y;
      x[half][2] = v.z;
      x[half][3] = v.w;
    }
  }
}

/// The weight's codes, decoded.
template <class Decoder, class Stage, int LaneRows>
__device__ __forceinline__ void load_weight(const Stage& stage, int row, int run, int t,
                                            const typename Decoder::Zero (&zero)[LaneRows],
                                            const typename Decoder::Shared& decoder,
                                            uint32_t (&weight)[LaneRows][4]) {
#pragma unroll
  for (int half = 0; half < LaneRows; ++half)
    Decoder::decode(raw_codes<Decoder::kBits>(&stage.codes[row + half * 8][run * Decoder::kBits], t),
                    zero[half], decoder, weight[half]);
}

/// sum += the run's product, 16 rows of a factor times 8 of the other.
template <class T>
__device__ __forceinline__ void multiply_run(float (&sum)[4], const uint32_t (&sixteen)[2][4],
                                             const uint32_t (&eight)[1][4]) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    const uint32_t a[4] = {sixteen[0][k], sixteen[1][k], sixteen[0][k + 1], sixteen[1][k + 1]};
    const uint32_t b[2] = {eight[0][k], eight[0][k + 1]};
    simt::mma_m16n8k16<T>(sum, a, b);
  }
}
template <class T>
__device__ __forceinline__ void multiply_run(float (&sum)[4], const uint32_t (&eight)[1][4],
                                             const uint32_t (&sixteen)[2][4]) {
  multiply_run<T>(sum, sixteen, eight);
}

}  // namespace quantaria::ops
