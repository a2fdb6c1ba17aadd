#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <vector>

#include "addon/environment.h"
#include "core/tensor.h"
#include "ops/dequant_matmul/coded_matrix.h"
#include "ops/dequant_matmul/dequant_matmul.h"

namespace quantaria::addon {

/// A quantized weight as operations take it from JavaScript: its tensors, and how products read them.
struct StoredWeight {
  int64_t out;
  int64_t in;
  Tensor packed;
  std::vector<Tensor> constants;  // those that may lie in tiles like the codes: scales or absmax first, zeros
  std::vector<Tensor> tensors;    // all, for the queue
  std::function<ops::WeightProducts()> products;  // on the queue, when the tensors hold values
  std::function<ops::DeviceWeight()> coded;       // the same as CUDA kernels take it
  const char* int8_obstacle;                      // why there are no int8 products; null if there are
  bool llm_int8;                                  // of that scheme: constants are its scales

  /// On the queue: the right factor for these products, after the codes were brought into the order that it
  /// reads.
  std::unique_ptr<ops::Factor> factor(ops::Operand operand) const;

  /// On a CUDA device's queue: `coded`, made once, as the tensors stay where and as they are there.
  const std::shared_ptr<const ops::DeviceWeight>& on_device() const;

  /// On the queue: brings the codes into the order that products read.
  ops::WeightProducts arrange_tiles() const;

  /// The same for products of that dtype of activations. If tensor cores could take it but for columns that
  /// name their groups, its codes are copied into the order of groups, once.
  std::shared_ptr<const ops::DeviceWeight> for_tensor_cores(DType x, bool rounded) const;

  /// The weight in the order of groups, and the memory of it; the weight as it is if that order is too
  /// sparse.
  struct Ordered {
    std::shared_ptr<Storage> columns;
    std::shared_ptr<Storage> words;
    ops::DeviceWeight weight;
  };

  mutable std::shared_ptr<const ops::DeviceWeight> made_on_device{};
  mutable std::shared_ptr<const Ordered> ordered{};
};

/// A weight of a scheme and its stored form, on any device. Throws on anything that does not fit together.
StoredWeight to_weight(Napi::Value scheme, Napi::Value stored, Napi::Value dims);

/// The native side of a quantized weight while products use it: made once, so that a product need not take
/// scheme and tensors apart again. Opaque, with a type tag, like TensorHandle.
class WeightHandle : public Napi::ObjectWrap<WeightHandle> {
 public:
  explicit WeightHandle(const Napi::CallbackInfo& info);

  static Napi::Object make(Napi::Env env, StoredWeight weight);

  /// The weight behind a value. ERR_ARGUMENT if it is not a handle, ERR_DISPOSED if it was disposed.
  static std::shared_ptr<const StoredWeight> get_anywhere(Napi::Value value, const char* name);

  /// The same, but null if the value is no handle of a weight.
  static std::shared_ptr<const StoredWeight> find(Napi::Value value, const char* name);

  static void dispose(Napi::Value value);

 private:
  /// Null if the value is no handle of a weight.
  static WeightHandle* unwrap(Napi::Value value);

  std::shared_ptr<const StoredWeight> weight_;
};

/// What products run in: "float32", "bfloat16" or "int8".
ops::Operand to_operand(Napi::Value compute);

void define_weight(Napi::Env env, Napi::Object exports, Environment& environment);

}  // namespace quantaria::addon
