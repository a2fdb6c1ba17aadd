#include "ops/bitpack/bitpack.h"
#include "ops/quantize/call_room.h"
#include "ops/quantize/mx_codes.cuh"
#include "ops/quantize/mx_factors.h"

namespace quantaria::ops {
namespace {

constexpr int kFactorLanes = 16;  // that share a sum, as on the CPU
constexpr int kFactorThreads = kMxPreScales * kFactorLanes;

struct FactorShared {
  CodeTable table;  // of elements
  double error[kMxPreScales];
};

/// The factor of each row that loses least, a block for each row and sixteen threads for each factor: sums
/// in the lanes and the order of the CPU's, as the choice depends on their last bits.
__global__ void __launch_bounds__(kFactorThreads)
    search_factors(const __grid_constant__ Walk walk, const __grid_constant__ MxRule rule,
                   const __grid_constant__ CodeTable table, const __grid_constant__ MxFactors factors,
                   float* best_of_row) {
  auto& shared = simt::shared<FactorShared>();
  for (int i = static_cast<int>(threadIdx.x); i < 256; i += kFactorThreads)
    shared.table.values[i] = table.values[i];
  const int lane = static_cast<int>(threadIdx.x) % kFactorLanes;
  const int k = static_cast<int>(threadIdx.x) / kFactorLanes;
  const float factor = factors.value[k];
  for (int64_t row = blockIdx.x; row < walk.w.rows; row += gridDim.x) {
    __syncthreads();  // the table is there, and the last row's errors were read
    float sum = 0;
    for (int64_t first = 0; first < walk.w.cols; first += kMxBlock) {
      float w[2];
      float scaled[2];
      float most = 0;
      for (int j = 0; j < 2; ++j) {
        const int64_t col = first + j * kFactorLanes + lane;
        w[j] = col < walk.w.cols ? walk.at(row, col) : 0.0f;
        scaled[j] = w[j] * factor;
        most = fabsf(scaled[j]) > most ? fabsf(scaled[j]) : most;
      }
      for (int apart = kFactorLanes / 2; apart > 0; apart /= 2) {
        const float other = __shfl_xor_sync(~0u, most, apart);
        most = other > most ? other : most;
      }
      const uint8_t scale = numerics::e8m0_of_absmax(most, rule.max_exponent);
      for (int j = 0; j < 2; ++j) {
        const uint32_t code =
            encode_mx_element(rule.element, rule.rounding, scaled[j] * numerics::inverse_of_e8m0(scale));
        const float kept =
            shared.table.values[most == 0 ? 0 : code] * numerics::float_from_e8m0(scale) / factor;
        const float lost = w[j] - kept;
        sum += lost * lost;
      }
    }
    // Lanes in their order, in float64.
    double error = 0;
    for (int i = 0; i < kFactorLanes; ++i)
      error += static_cast<double>(__shfl_sync(~0u, sum, i, kFactorLanes));
    if (lane == 0) shared.error[k] = error;
    __syncthreads();  // the errors of all factors are there
    if (threadIdx.x == 0) {
      int best = 0;
      double least = __builtin_inf();
      for (int i = 0; i < kMxPreScales; ++i) {
        if (!(shared.error[i] < least)) continue;
        best = i;
        least = shared.error[i];
      }
      simt::store(best_of_row + row, factors.value[best]);
    }
  }
}

}  // namespace

void quantize_mx_cuda(const QuantizeCall& call, const MxScheme& scheme, uint8_t* packed, uint8_t* scales,
                      float* pre_scale) {
  const auto stream = static_cast<simt::Stream>(call.stream);
  const CallRoom room(call.workspace);
  const ConstMatrix& w = call.w;
  const int bits = mx_element_bits(scheme.element);
  const MxRule rule = mx_rule_of(scheme);
  Walk walk{};
  walk.w = w;
  const DeviceWeight stored = coded_mx(scheme, packed, scales, pre_scale, w.rows, w.cols);
  if (scheme.pre_scale && w.rows > 0)
    simt::launch(search_factors, cuda::blocks_for(w.rows, 1), dim3(kFactorThreads), sizeof(FactorShared),
                 stream, walk, rule, stored.table, mx_factors(), pre_scale);
  const float* const factors = scheme.pre_scale ? pre_scale : nullptr;
  const int64_t blocks = (w.cols + kMxBlock - 1) / kMxBlock;
  const Segments segments{walk, w.rows, w.cols, kMxBlock, blocks};
  launch_fit(stream, segments, FitMx{rule, factors, blocks, scales}, room.verdict);
  launch_pack(stream, walk, bit_rows(packed, bits, w.rows, w.cols),
              EncodeMx{rule, factors, scales, blocks, w.cols});
  relative_error_cuda(stream, w, stored, room.errors, call.relative_error);
}

}  // namespace quantaria::ops
