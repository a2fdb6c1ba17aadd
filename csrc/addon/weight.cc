#include "addon/weight.h"

#include <utility>

#include "addon/arguments.h"
#include "addon/scheme.h"
#include "addon/stored_parts.h"
#include "core/device.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/group_order.h"
#include "ops/dequant_matmul/narrow_scales.h"
#include "ops/dequant_matmul/weight_tiles.h"

namespace quantaria::addon {
namespace {

void arrange(const StoredWeight& weight, const ops::WeightProducts& products, bool tiled) {
  Storage& storage = *weight.packed.storage;
  if (storage.tiled() == tiled) return;
  const auto order = tiled ? ops::rows_to_tiles : ops::tiles_to_rows;
  ThreadPool& pool = cpu::device().pool();
  order(pool, weight.packed.data_as<uint32_t>(), products.rows, products.words_per_row);
  if (products.groups > 1) {
    const int64_t count = products.rows * products.groups;
    const Tensor& scales = weight.constants[0];
    if (!tiled) {
      ops::widen_scales(scales.data_as<float>(), count, storage.scale_dtype());
      storage.set_scale_dtype(DType::float32);
    }
    for (const Tensor& constant : weight.constants)
      order(pool, constant.data_as<uint32_t>(), products.rows, products.groups);
    if (tiled) storage.set_scale_dtype(ops::narrow_scales(scales.data_as<float>(), count));
  }
  storage.set_tiled(tiled);
}

/// What is known of a kind of weight before its tensors hold values, and its products when they do.
struct Products {
  std::function<ops::WeightProducts()> products;
  std::function<ops::DeviceWeight()> coded;
  const char* int8_obstacle = "compute: int8 needs a weight of integers";
};

/// On the queue of a device: the groups that columns name must exist, as kernels look them up.
void check_index_there(const Tensor& index, int64_t groups) {
  std::vector<int32_t> columns(static_cast<size_t>(index.elements()));
  index.device->copy_out(index.data(), reinterpret_cast<std::byte*>(columns.data()), index.bytes());
  ops::check_group_index(columns.data(), index.elements(), groups);
}

Products int_weight(Napi::Value scheme, Parts& parts, int64_t out, int64_t in) {
  const ops::IntScheme s = to_int_scheme(scheme);
  const ops::ConstantsShape constants = ops::constants_shape(s, out, in);
  const int64_t count = constants.rows * constants.cols;
  const Tensor packed = parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, s.bits));
  const Tensor scales = parts.take("scales", DType::float32, count);
  const Tensor zeros = s.symmetric ? Tensor{} : parts.take("zeros", DType::int32, count);
  const Tensor index = parts.has("groupIndex") ? parts.take("groupIndex", DType::int32, in) : Tensor{};
  const auto parts_of = [=]() -> ops::ConstIntStored {
    return {pointer<uint8_t>(packed), pointer<float>(scales), pointer<int32_t>(zeros),
            pointer<int32_t>(index)};
  };
  return {[=] { return ops::int_products(s, parts_of(), out, in); },
          [=, checked = std::make_shared<bool>(false)] {
            // Once: nothing writes to it any more.
            if (index.storage && !*checked) check_index_there(index, constants.cols);
            *checked = true;
            return ops::coded_int(s, parts_of(), out, in);
          },
          ops::int8_obstacle(s, parts.has("groupIndex"), in)};
}

Products codebook_weight(Napi::Value scheme, Parts& parts, int64_t out, int64_t in) {
  const ops::CodebookScheme s = to_codebook_scheme(scheme);
  const int64_t blocks = ops::block_count(s, out, in);
  const int bits = s.book == ops::Codebook::dynamic8 ? 8 : 4;
  const Tensor packed = parts.take("packed", DType::uint8, ops::packed_row_bytes(out * in, bits));
  Tensor absmax, codes, scales, offset;
  if (s.double_quant) {
    codes = parts.take("absmaxCodes", DType::uint8, blocks);
    scales = parts.take("absmaxScales", DType::float32, (blocks + ops::kNestedBlock - 1) / ops::kNestedBlock);
    offset = parts.take("absmaxOffset", DType::float32, 1);
  } else {
    absmax = parts.take("absmax", DType::float32, blocks);
  }
  const auto parts_of = [=]() -> ops::ConstCodebookStored {
    return {pointer<uint8_t>(packed), pointer<float>(absmax), pointer<uint8_t>(codes), pointer<float>(scales),
            pointer<float>(offset)};
  };
  return {[=] { return ops::codebook_products(s, parts_of(), out, in); },
          [=] { return ops::coded_codebook(s, parts_of(), out, in); }};
}

Products fp8_weight(Napi::Value scheme, Parts& parts, int64_t out, int64_t in) {
  const ops::Fp8Scheme s = to_fp8_scheme(scheme);
  const Tensor packed = parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, 8));
  const Tensor scales = parts.take("scales", DType::float32, s.per_row ? out : 1);
  return {[=] { return ops::fp8_products(s, pointer<uint8_t>(packed), pointer<float>(scales), out, in); },
          [=] { return ops::coded_fp8(s, pointer<uint8_t>(packed), pointer<float>(scales), out, in); }};
}

Products mx_weight(Napi::Value scheme, Parts& parts, int64_t out, int64_t in) {
  const ops::MxScheme s = to_mx_scheme(scheme);
  const int64_t blocks = (in + ops::kMxBlock - 1) / ops::kMxBlock;
  const Tensor packed =
      parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, ops::mx_element_bits(s.element)));
  const Tensor scales = parts.take("scales", DType::uint8, out * blocks);
  const Tensor pre_scale = s.pre_scale ? parts.take("preScale", DType::float32, out) : Tensor{};
  return {[=] {
            return ops::mx_products(s, pointer<uint8_t>(packed), pointer<uint8_t>(scales),
                                    pointer<float>(pre_scale), out, in);
          },
          [=] {
            return ops::coded_mx(s, pointer<uint8_t>(packed), pointer<uint8_t>(scales),
                                 pointer<float>(pre_scale), out, in);
          }};
}

Products llm_int8_weight(Napi::Value, Parts& parts, int64_t out, int64_t in) {
  const Tensor packed = parts.take("packed", DType::uint8, out * ops::packed_row_bytes(in, 8));
  const Tensor scales = parts.take("scales", DType::float32, out);
  return {[=] { return ops::llm_int8_products(pointer<uint8_t>(packed), pointer<float>(scales), out, in); },
          [=] { return ops::coded_llm_int8(pointer<uint8_t>(packed), pointer<float>(scales), out, in); }};
}

using MakeProducts = Products (*)(Napi::Value, Parts&, int64_t, int64_t);

MakeProducts products_of(Napi::Value scheme) {
  return choice<MakeProducts>(field(scheme, "kind"), "kind",
                              {{"int", int_weight},
                               {"nf4", codebook_weight},
                               {"fp4", codebook_weight},
                               {"e3m0", codebook_weight},
                               {"dynamic8", codebook_weight},
                               {"fp8", fp8_weight},
                               {"mx", mx_weight},
                               {"llm.int8", llm_int8_weight}});
}

/// ownsStorage(tensor): whether its bytes may be put into another order: it has all of a storage, which can
/// be written and which no other handle shows.
Napi::Value owns_storage(const Napi::CallbackInfo& info) {
  const Tensor& tensor = TensorHandle::get_anywhere(info[0], "tensor");
  const bool owned = tensor.storage->writable() && tensor.contiguous() && tensor.offset == 0 &&
                     tensor.bytes() == tensor.storage->bytes() && !tensor.storage->shared();
  return Napi::Boolean::New(info.Env(), owned);
}

}  // namespace

StoredWeight to_weight(Napi::Value scheme, Napi::Value stored, Napi::Value dims) {
  const Shape shape = to_shape(dims, "shape");
  if (shape.size() != 2) fail(ErrorCode::shape, "shape: ", to_string(shape), ", [out, in] expected");
  Parts parts(stored);
  Products products = products_of(scheme)(scheme, parts, shape[0], shape[1]);
  const Tensor packed = parts.take("packed", DType::uint8, parts.taken()[0].elements());
  std::vector<Tensor> constants;
  for (const char* const part : {"scales", "absmax", "zeros"}) {
    if (!parts.has(part)) continue;
    const Tensor& tensor = TensorHandle::get_anywhere(field(stored, part), part);
    if (size_of(tensor.dtype) == 4) constants.push_back(tensor);
  }
  std::vector<Tensor> arranged = constants;
  arranged.push_back(packed);
  for (const Tensor& tensor : arranged)
    if (tensor.device == &cpu::device() && !tensor.storage->writable())
      fail(ErrorCode::argument, "stored: tensors that can be written expected");
  return {shape[0],
          shape[1],
          packed,
          std::move(constants),
          parts.taken(),
          std::move(products.products),
          std::move(products.coded),
          products.int8_obstacle,
          to_text(field(scheme, "kind"), "kind") == "llm.int8"};
}

namespace {

/// weight(scheme, stored, shape): a handle for products
Napi::Value make_weight(const Napi::CallbackInfo& info) {
  return WeightHandle::make(info.Env(), to_weight(info[0], info[1], info[2]));
}

/// weightDispose(weight): gives up its tensors; work that is queued on them keeps what it needs
Napi::Value dispose_weight(const Napi::CallbackInfo& info) {
  WeightHandle::dispose(info[0]);
  return info.Env().Undefined();
}

/// arrange(weight, tiled): brings the codes into the order of products, or of rows. Nothing happens to a
/// weight that is multiplied by rows, as on CUDA devices.
Napi::Value arrange_weight(const Napi::CallbackInfo& info) {
  const std::shared_ptr<const StoredWeight> weight = WeightHandle::get_anywhere(info[0], "weight");
  const bool tiled = to_bool(info[1], "tiled");
  if (weight->packed.device != &cpu::device()) return info.Env().Undefined();
  std::vector<Tensor> arranged = weight->constants;
  arranged.push_back(weight->packed);
  cpu::device().enqueue(weight->tensors, std::move(arranged), [=] {
    const ops::WeightProducts products = weight->products();
    arrange(*weight, products, tiled && products.tiled);
  });
  return info.Env().Undefined();
}

constexpr napi_type_tag kWeightTag{0x5155414E54415249, 0x0000000057454947};

}  // namespace

WeightHandle::WeightHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<WeightHandle>(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw to_javascript(info.Env(), Error(ErrorCode::argument, "weights are made by `weight`, not by `new`"));
  weight_ =
      std::make_shared<const StoredWeight>(std::move(*info[0].As<Napi::External<StoredWeight>>().Data()));
  napi_type_tag_object(info.Env(), info.This(), &kWeightTag);
}

Napi::Object WeightHandle::make(Napi::Env env, StoredWeight weight) {
  return Environment::of(env).weight_class.New({Napi::External<StoredWeight>::New(env, &weight)});
}

WeightHandle* WeightHandle::unwrap(Napi::Value value) {
  bool ours = false;
  const bool checked = value.IsObject() &&
                       napi_check_object_type_tag(value.Env(), value, &kWeightTag, &ours) == napi_ok && ours;
  return checked ? Unwrap(value.As<Napi::Object>()) : nullptr;
}

namespace {

const std::shared_ptr<const StoredWeight>& live(const std::shared_ptr<const StoredWeight>& weight,
                                                const char* name) {
  if (!weight) fail(ErrorCode::disposed, name, ": the quantized weight was disposed");
  return weight;
}

}  // namespace

std::shared_ptr<const StoredWeight> WeightHandle::get_anywhere(Napi::Value value, const char* name) {
  const WeightHandle* const handle = unwrap(value);
  if (handle == nullptr) fail(ErrorCode::argument, name, ": a quantized weight expected");
  return live(handle->weight_, name);
}

std::shared_ptr<const StoredWeight> WeightHandle::find(Napi::Value value, const char* name) {
  const WeightHandle* const handle = unwrap(value);
  return handle == nullptr ? nullptr : live(handle->weight_, name);
}

void WeightHandle::dispose(Napi::Value value) {
  WeightHandle* const handle = unwrap(value);
  if (handle == nullptr) fail(ErrorCode::argument, "weight: a quantized weight expected");
  handle->weight_.reset();
}

ops::WeightProducts StoredWeight::arrange_tiles() const {
  ops::WeightProducts weight = products();
  arrange(*this, weight, weight.tiled);
  return weight;
}

namespace {

/// On the queue of a device: whether any zero point is such that products in 16 bits would round it.
bool has_far_zeros(const std::vector<Tensor>& constants, int bits) {
  for (const Tensor& zeros : constants) {
    if (zeros.dtype != DType::int32) continue;
    std::vector<int32_t> values(static_cast<size_t>(zeros.elements()));
    zeros.device->copy_out(zeros.data(), reinterpret_cast<std::byte*>(values.data()), zeros.bytes());
    if (!ops::zeros_are_near(values, bits)) return true;
  }
  return false;
}

}  // namespace

const std::shared_ptr<const ops::DeviceWeight>& StoredWeight::on_device() const {
  if (!made_on_device) {
    ops::DeviceWeight weight = coded();
    weight.matrix.far_zeros = has_far_zeros(constants, weight.matrix.bits);
    made_on_device = std::make_shared<const ops::DeviceWeight>(std::move(weight));
  }
  return made_on_device;
}

namespace {

StoredWeight::Ordered order_groups(const ops::DeviceWeight& weight, cuda::Device& device) {
  const ops::CodedMatrix& m = weight.matrix;
  std::vector<int32_t> index(static_cast<size_t>(m.in));
  const int64_t bytes = m.in * 4;
  device.copy_out(reinterpret_cast<const std::byte*>(m.index), reinterpret_cast<std::byte*>(index.data()),
                  bytes);
  auto order =
      std::make_shared<const ops::GroupOrder>(ops::order_by_groups(index, (m.in + m.group - 1) / m.group));
  if (order->columns.empty()) return {nullptr, nullptr, weight};
  const auto count = static_cast<int64_t>(order->columns.size());
  const auto columns = device.allocate(count * 4);
  device.copy_in(reinterpret_cast<const std::byte*>(order->columns.data()), columns->data(), count * 4);
  const auto words = device.allocate(m.out * count * m.bits / 8);
  const auto* const left = reinterpret_cast<const int32_t*>(columns->data());
  auto* const codes = reinterpret_cast<uint32_t*>(words->data());
  device.kernels().order_codes(device.stream(), m, left, count, codes);
  return {columns, words, ops::in_group_order(weight, std::move(order), left, codes)};
}

}  // namespace

std::shared_ptr<const ops::DeviceWeight> StoredWeight::for_tensor_cores(DType x, bool rounded) const {
  const ops::DeviceWeight& weight = *on_device();
  cuda::Device& device = cuda::of(packed.device);
  ops::CodedMatrix in_order = weight.matrix;
  in_order.index = nullptr;
  in_order.group = in_order.in;
  if (weight.matrix.index == nullptr || !device.kernels().on_tensor_cores(x, in_order, rounded))
    return on_device();
  if (!ordered) ordered = std::make_shared<const Ordered>(order_groups(weight, device));
  return {ordered, &ordered->weight};
}

std::unique_ptr<ops::Factor> StoredWeight::factor(ops::Operand operand) const {
  const ops::WeightProducts weight = arrange_tiles();
  return weight.factor(operand, packed.storage->scale_dtype());
}

ops::Operand to_operand(Napi::Value compute) {
  return choice<ops::Operand>(compute, "compute",
                              {{"float32", ops::Operand::float32},
                               {"bfloat16", ops::Operand::bfloat16},
                               {"int8", ops::Operand::int8}});
}

void define_weight(Napi::Env env, Napi::Object exports, Environment& environment) {
  environment.weight_class = Napi::Persistent(WeightHandle::DefineClass(env, "NativeWeight", {}));
  exports.Set("weight", Napi::Function::New<guarded<make_weight>>(env));
  exports.Set("weightDispose", Napi::Function::New<guarded<dispose_weight>>(env));
  exports.Set("ownsStorage", Napi::Function::New<guarded<owns_storage>>(env));
  exports.Set("arrange", Napi::Function::New<guarded<arrange_weight>>(env));
}

}  // namespace quantaria::addon
