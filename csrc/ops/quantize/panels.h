#pragma once

#include "ops/quantize/weight.h"

/// Quantization of weights of 16-bit floats that are stored [in, out], as stacked experts are: rows side by
/// side in the lanes, where they lie. Only the packed codes are transposed, a quarter or less of the bytes.
/// The bits are those of the row kernels.
namespace quantaria::ops {

/// Whether w lies so, and groups end with a packed word.
bool int_panels_fit(const ConstMatrix& w, const IntScheme& scheme);
bool codebook_panels_fit(const ConstMatrix& w, const CodebookScheme& scheme);

/// As quantize_int and quantize_codebook (single quantization); `sums` has a part for each row.
void quantize_int_panels(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                         FiniteCheck& check, PartSums& sums);
void quantize_codebook_panels(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme,
                              uint8_t* packed, float* absmax, FiniteCheck& check, PartSums& sums);

}  // namespace quantaria::ops
