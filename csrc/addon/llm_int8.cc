#include "addon/llm_int8.h"

#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "addon/tensor_handle.h"
#include "core/attempt.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "ops/copy/copy_tensor.h"
#include "ops/llm_int8/llm_int8.h"

namespace quantaria::addon {
namespace {

using Columns = std::vector<int64_t>;

Napi::Value to_array(Napi::Env env, const Columns& columns) {
  Napi::Array array = Napi::Array::New(env, columns.size());
  for (size_t i = 0; i < columns.size(); ++i)
    array.Set(static_cast<uint32_t>(i), static_cast<double>(columns[i]));
  return array;
}

const Tensor& activations(Napi::Value value) {
  const Tensor& x = TensorHandle::get_anywhere(value, "x");
  if (x.shape.size() != 2) fail(ErrorCode::shape, "x: ", to_string(x.shape), ", [T, in] expected");
  return x;
}

/// A promise of what `work` finds on the queue and `result` makes of it for JavaScript. Rejects with x's
/// failure.
template <class Found>
Napi::Value on_queue(const Napi::CallbackInfo& info, const Tensor& x, std::function<void(Found&)> work,
                     std::function<Napi::Value(Napi::Env, const Found&)> result) {
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  const auto found = std::make_shared<Found>();
  x.device->post([=, settle = settle, work = std::move(work)] {
    std::shared_ptr<const Error> failure = x.storage->failure();
    x.device->told(failure);
    if (!failure) failure = failure_of([&] { work(*found); });
    settle(failure, [found, result](Napi::Env env) { return result(env, *found); });
  });
  return promise;
}

/// A bit a column, in memory of x's CUDA device.
std::shared_ptr<Storage> words_by_cuda(const Tensor& x, float threshold) {
  cuda::Device& device = cuda::of(x.device);
  const int64_t bytes = (x.shape[1] + 31) / 32 * 4;
  std::shared_ptr<Storage> words = device.allocate(bytes);
  device.zero(words->data(), bytes);
  device.kernels().llm_int8.outlier_words(device.stream(), as_matrix(x), threshold,
                                          reinterpret_cast<uint32_t*>(words->data()));
  return words;
}

Columns columns_of_words(const Tensor& x, const Storage& words) {
  std::vector<uint8_t> bytes(static_cast<size_t>((x.shape[1] + 31) / 32 * 4));
  x.device->copy_out(words.data(), reinterpret_cast<std::byte*>(bytes.data()),
                     static_cast<int64_t>(bytes.size()));
  Columns columns;
  for (int64_t c = 0; c < x.shape[1]; ++c)
    if ((bytes[static_cast<size_t>(c / 8)] >> c % 8 & 1) != 0) columns.push_back(c);
  return columns;
}

std::vector<uint8_t> mask_of(const Tensor& x, float threshold) {
  std::vector<uint8_t> mask(static_cast<size_t>(x.shape[1]));
  ops::outlier_mask(cpu::device().pool(), as_matrix(x), threshold, mask.data());
  return mask;
}

/// llmInt8OutlierColumns(x, threshold): a promise of the columns, rising
Napi::Value outlier_columns(const Napi::CallbackInfo& info) {
  const Tensor x = activations(info[0]);
  const float threshold = to_threshold(info[1]);
  return on_queue<Columns>(
      info, x,
      [=](Columns& columns) {
        if (x.device != &cpu::device()) {
          columns = columns_of_words(x, *words_by_cuda(x, threshold));
          return;
        }
        const std::vector<uint8_t> mask = mask_of(x, threshold);
        columns = ops::outlier_columns(mask.data(), x.shape[1]);
      },
      to_array);
}

struct Split {
  Columns columns;
  Tensor outliers;
};

void split_by_cuda(const Tensor& x, float threshold, const Tensor& codes, const Tensor& scales,
                   Split& found) {
  cuda::Device& device = cuda::of(x.device);
  const std::shared_ptr<Storage> words = words_by_cuda(x, threshold);
  device.kernels().llm_int8.quantize_activations(device.stream(), as_matrix(x), threshold,
                                                 reinterpret_cast<const uint32_t*>(words->data()),
                                                 scales.data_as<float>(), codes.data_as<int8_t>());
  found.columns = columns_of_words(x, *words);
  const auto count = static_cast<int64_t>(found.columns.size());
  found.outliers = empty(device, x.dtype, {x.shape[0], count});
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = found.columns[static_cast<size_t>(i)];
    copy_on_device(slice(x, 1, c, c + 1), slice(found.outliers, 1, i, i + 1));
  }
}

/// llmInt8Split(x, threshold): a promise of {columns, outliers, codes, scales}
Napi::Value split(const Napi::CallbackInfo& info) {
  const Tensor x = activations(info[0]);
  const float threshold = to_threshold(info[1]);
  const Tensor codes = empty(*x.device, DType::int8, x.shape);
  const Tensor scales = empty(*x.device, DType::float32, {x.shape[0]});
  return on_queue<Split>(
      info, x,
      [=](Split& found) {
        if (x.device != &cpu::device()) return split_by_cuda(x, threshold, codes, scales, found);
        const std::vector<uint8_t> mask = mask_of(x, threshold);
        found.columns = ops::outlier_columns(mask.data(), x.shape[1]);
        // How many there are is known only now.
        found.outliers =
            empty(cpu::device(), x.dtype, {x.shape[0], static_cast<int64_t>(found.columns.size())});
        ops::gather_columns(cpu::device().pool(), as_matrix(x), found.columns, found.outliers.data());
        ops::quantize_activations(cpu::device().pool(), as_matrix(x), threshold, mask.data(),
                                  scales.data_as<float>(), codes.data_as<int8_t>(), x.shape[1]);
      },
      [=](Napi::Env env, const Split& found) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("columns", to_array(env, found.columns));
        result.Set("outliers", TensorHandle::make(env, found.outliers));
        result.Set("codes", TensorHandle::make(env, codes));
        result.Set("scales", TensorHandle::make(env, scales));
        return result;
      });
}

}  // namespace

float to_threshold(Napi::Value value) {
  const double threshold = to_number(value, "threshold");
  if (threshold < 0) fail(ErrorCode::argument, "threshold: ", threshold, ", 0 or more expected");
  if (threshold > double{std::numeric_limits<float>::max()}) return std::numeric_limits<float>::infinity();
  const auto rounded = static_cast<float>(threshold);
  return threshold > 0 && rounded == 0 ? std::numeric_limits<float>::denorm_min() : rounded;
}

void define_llm_int8(Napi::Env env, Napi::Object exports) {
  exports.Set("llmInt8OutlierColumns", Napi::Function::New<guarded<outlier_columns>>(env));
  exports.Set("llmInt8Split", Napi::Function::New<guarded<split>>(env));
}

}  // namespace quantaria::addon
