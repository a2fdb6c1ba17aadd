#pragma once

#include "addon/stored_parts.h"
#include "cpu/device.h"
#include "ops/bitpack/bitpack.h"
#include "ops/gptq/gptq.h"
#include "ops/quantize/quantize.h"

/// The tensors that a quantization of a weight w [out, in] fills, by kind of scheme. `Form` has
/// Tensor add(const char* name, DType, Shape).
namespace quantaria::addon {

/// The weight as kernels see it. A matrix may claim 2^50 rows without columns: where rows have no constants
/// of their own, there is nothing to do for any of them.
inline ConstMatrix weight_matrix(const Tensor& w, bool constants_by_row) {
  ConstMatrix m = as_matrix(w);
  if (m.cols == 0 && !constants_by_row) m.rows = 0;
  return m;
}

struct IntTensors {
  Tensor packed, scales, zeros;
  ops::IntStored pointers() const {
    return {pointer<uint8_t>(packed), pointer<float>(scales), pointer<int32_t>(zeros)};
  }
};
template <class Form>
IntTensors add_int(Form& form, const Tensor& w, const ops::IntScheme& s) {
  const ops::ConstantsShape constants = ops::constants_shape(s, w.shape[0], w.shape[1]);
  IntTensors tensors;
  tensors.packed = form.add("packed", DType::uint8, {w.shape[0], ops::packed_row_bytes(w.shape[1], s.bits)});
  tensors.scales = form.add("scales", DType::float32, {constants.rows, constants.cols});
  if (!s.symmetric) tensors.zeros = form.add("zeros", DType::int32, {constants.rows, constants.cols});
  return tensors;
}

struct CodebookTensors {
  Tensor packed, absmax, codes, scales, offset;
  ops::CodebookStored pointers() const {
    return {pointer<uint8_t>(packed), pointer<float>(absmax), pointer<uint8_t>(codes), pointer<float>(scales),
            pointer<float>(offset)};
  }
};
template <class Form>
CodebookTensors add_codebook(Form& form, const ConstMatrix& m, const ops::CodebookScheme& s) {
  const int64_t blocks = ops::block_count(s, m.rows, m.cols);
  const int bits = s.book == ops::Codebook::dynamic8 ? 8 : 4;
  CodebookTensors tensors;
  tensors.packed = form.add("packed", DType::uint8, {1, ops::packed_row_bytes(m.rows * m.cols, bits)});
  if (!s.double_quant) {
    tensors.absmax = form.add("absmax", DType::float32, {blocks});
    return tensors;
  }
  tensors.codes = form.add("absmaxCodes", DType::uint8, {blocks});
  tensors.scales =
      form.add("absmaxScales", DType::float32, {(blocks + ops::kNestedBlock - 1) / ops::kNestedBlock});
  tensors.offset = form.add("absmaxOffset", DType::float32, {1});
  return tensors;
}

struct Fp8Tensors {
  Tensor packed, scales;
  ops::Fp8Stored pointers() const { return {pointer<uint8_t>(packed), pointer<float>(scales)}; }
};
template <class Form>
Fp8Tensors add_fp8(Form& form, const Tensor& w, const ops::Fp8Scheme& s) {
  Fp8Tensors tensors;
  tensors.packed = form.add("packed", DType::uint8, {w.shape[0], ops::packed_row_bytes(w.shape[1], 8)});
  tensors.scales = form.add("scales", DType::float32, {s.per_row ? w.shape[0] : 1, 1});
  return tensors;
}

struct MxTensors {
  Tensor packed, scales, pre_scale;
  ops::MxStored pointers() const {
    return {pointer<uint8_t>(packed), pointer<uint8_t>(scales), pointer<float>(pre_scale)};
  }
};
template <class Form>
MxTensors add_mx(Form& form, const Tensor& w, const ops::MxScheme& s) {
  const int64_t blocks = (w.shape[1] + ops::kMxBlock - 1) / ops::kMxBlock;
  const int bits = ops::mx_element_bits(s.element);
  MxTensors tensors;
  tensors.packed = form.add("packed", DType::uint8, {w.shape[0], ops::packed_row_bytes(w.shape[1], bits)});
  tensors.scales = form.add("scales", DType::uint8, {w.shape[0], blocks});
  if (s.pre_scale) tensors.pre_scale = form.add("preScale", DType::float32, {w.shape[0], 1});
  return tensors;
}

}  // namespace quantaria::addon
