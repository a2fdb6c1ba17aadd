#pragma once

#include "ops/dequant_matmul/coded_fetch.cuh"

/// A run of 32 columns on tensor cores: the weight's rows are the sixteen of a fragment, those of x the
/// eight. A lane holds rows g and g + 8 of the weight's and row g of x's, four registers each, in the order
/// in which decoders pair columns.
namespace quantaria::ops {

/// Where a lane reads, in the first stage: worked out once, as the place of a stage is all that differs
/// between steps.
template <class Tile, int Bits>
struct LanePlaces {
  using Stage = CodedStage<Tile, Bits>;
  const uint16_t* x[2];  // of runs with an even and with an odd number
  const uint32_t* codes;
  const float* scales;
  const int32_t* zeros;

  __device__ __forceinline__ LanePlaces(const Stage& first, const WarpPlace<Tile>& warp) {
    const int row = warp.row + warp.g;
#pragma unroll
    for (int run = 0; run < 2; ++run) x[run] = &first.x[row][((run ^ (row & 1)) * 4 + warp.t) * 8];
    codes = first.codes[warp.col + warp.g];
    scales = &first.scales[0][warp.col + warp.g];
    zeros = &first.zeros[0][warp.col + warp.g];
  }
};

/// Row i * 8 of the lane's.
template <class Tile, int Bits>
__device__ __forceinline__ uint4 load_x(const LanePlaces<Tile, Bits>& lane, int stage, int i, int run) {
  const uint16_t* const first = lane.x[run % 2] + i * 8 * Tile::kStep + run / 2 * 64;
  return simt::load_shared<uint4>(in_stage(first, stage));
}

/// Rows j * 16 and j * 16 + 8 of the lane's.
template <class Decoder, class Tile>
__device__ __forceinline__ void load_weight(const LanePlaces<Tile, Decoder::kBits>& lane, int stage, int j,
                                            int run, int t, const typename Decoder::Zero (&zero)[2],
                                            const typename Decoder::Shared& decoder,
                                            uint32_t (&weight)[2][4]) {
  constexpr int kBits = Decoder::kBits;
  constexpr int kPitch = code_pitch(Tile::kRuns * kBits);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t* const first = lane.codes + (j * 16 + half * 8) * kPitch + run * kBits;
    Decoder::decode(raw_codes<kBits>(in_stage(first, stage), t), zero[half], decoder, weight[half]);
  }
}

/// sum += the run's product.
template <class T>
__device__ __forceinline__ void multiply_run(float (&sum)[4], const uint32_t (&weight)[2][4],
                                             const uint4& x) {
  const uint32_t first[4] = {weight[0][0], weight[1][0], weight[0][1], weight[1][1]};
  const uint32_t second[4] = {weight[0][2], weight[1][2], weight[0][3], weight[1][3]};
  simt::mma_m16n8k16<T>(sum, first, {x.x, x.y});
  simt::mma_m16n8k16<T>(sum, second, {x.z, x.w});
}

}  // namespace quantaria::ops
