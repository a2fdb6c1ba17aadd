#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "ops/dequant_matmul/group_order.h"
#include "ops/quantize/quantize.h"

/// A quantized weight in device memory as CUDA kernels read it: its stored form as it is, row by row,
/// whatever the scheme.
namespace quantaria::ops {

/// What codes of up to 8 bits stand for, before zero point and scale; and the map of nested scales.
struct CodeTable {
  float values[256];
  float nested[256];
};

/// How the scale of a constant is kept.
enum class ScaleForm : uint8_t {
  plain,   // float32
  e8m0,    // uint8, a power of two
  nested,  // uint8 into the table's map, times floats[constant / 256], plus *offset
};

/// Where a weight lies. All else of a CodedMatrix is the same for the experts of a layer.
struct CodedSource {
  const uint32_t* words = nullptr;
  const int32_t* zeros = nullptr;  // or null: none but what the table has
  const int32_t* index = nullptr;  // groups of columns that name them: null or [in]
  const float* floats = nullptr;
  const uint8_t* bytes = nullptr;
  const float* offset = nullptr;
  const float* row_divisors = nullptr;  // of e8m0: null or [out]

  constexpr bool there() const { return words != nullptr; }
};

/// value(n, k) = (table[code(n, k)] - zero) * scale, each step rounded to float32, in the order of the CPU's
/// dequantization; over `divisor` last.
struct CodedMatrix : CodedSource {
  int64_t out = 0;
  int64_t in = 0;
  int64_t row_bits = 0;            // from the first code of a row to that of the next one
  int bits = 0;                    // 2..8 or 16
  int32_t first = 0;               // what code 0 of 16 bits stands for; they have no table
  bool table_of_integers = false;  // table[code] = code + table[0]

  // The constant of (n, k) is n * row_step + k / group, or that of the flat index: (n * in + k) / group, or
  // n * row_step + index[k] where columns name their groups.
  bool flat = false;
  int64_t row_step = 0;
  int64_t group = 1;
  ScaleForm form = ScaleForm::plain;
  bool far_zeros = false;  // some that 16 bits do not take off a code exactly (zeros_are_near)
  float divisor = 1;
};

/// A weight and its table, both given to kernels by value.
struct DeviceWeight {
  CodedMatrix matrix;
  CodeTable table;
  /// In device memory [in]: which column of the activations meets each of the matrix, -1 for 0; null: its
  /// own.
  const int32_t* left_columns = nullptr;
  /// The same on the host, where weights that want the same activations are told from others.
  std::shared_ptr<const GroupOrder> order{};
};

/// Whether a code of so many bits less any of these zero points, and what the decoders of tensor cores
/// (decoders.cuh) subtract from it to get there, are exact in bfloat16 as in float16. All that lie among the
/// codes are.
bool zeros_are_near(std::span<const int32_t> zeros, int bits);

/// The weight whose columns name their groups with its columns in the order of groups: `left_columns` are
/// order's in device memory, `words` what order_codes_cuda makes of the weight.
DeviceWeight in_group_order(const DeviceWeight& weight, std::shared_ptr<const GroupOrder> order,
                            const int32_t* left_columns, const uint32_t* words);

/// Weights of each kind of scheme; the pointers are to device memory. Groups that columns name exist: the
/// caller has seen to it (check_group_index).
DeviceWeight coded_int(const IntScheme& scheme, const ConstIntStored& stored, int64_t out, int64_t in);
DeviceWeight coded_codebook(const CodebookScheme& scheme, const ConstCodebookStored& stored, int64_t out,
                            int64_t in);
DeviceWeight coded_fp8(const Fp8Scheme& scheme, const uint8_t* packed, const float* scales, int64_t out,
                       int64_t in);
DeviceWeight coded_mx(const MxScheme& scheme, const uint8_t* packed, const uint8_t* scales,
                      const float* pre_scale, int64_t out, int64_t in);
DeviceWeight coded_llm_int8(const uint8_t* packed, const float* absmax, int64_t out, int64_t in);

}  // namespace quantaria::ops
