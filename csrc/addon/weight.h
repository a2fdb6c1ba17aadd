#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "ops/dequant_matmul/dequant_matmul.h"

namespace quantaria::addon {

/// A quantized weight as operations take it from JavaScript: its tensors, and how products read them.
struct StoredWeight {
  int64_t out;
  int64_t in;
  Tensor packed;
  std::vector<Tensor> constants;  // those that may lie in tiles like the codes: scales or absmax, zeros
  std::vector<Tensor> tensors;    // all, for the queue
  std::function<ops::WeightProducts()> products;  // on the queue, when the tensors hold values
  const char* int8_obstacle;                      // why there are no int8 products; null if there are

  /// On the queue: the right factor for these products, after the codes were brought into the order that it
  /// reads.
  std::unique_ptr<ops::Factor> factor(ops::Operand operand) const;

  /// On the queue: brings the codes into the order that products read.
  ops::WeightProducts arrange_tiles() const;
};

/// weight: {scheme, stored, shape}. Throws on anything that does not fit together.
StoredWeight to_weight(Napi::Value weight, const char* name);

/// What products run in: "float32", "bfloat16" or "int8".
ops::Operand to_operand(Napi::Value compute);

void define_weight(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
