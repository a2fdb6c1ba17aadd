#include "addon/files.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "addon/arguments.h"
#include "addon/tensor_handle.h"
#include "core/attempt.h"
#include "core/device.h"
#include "core/executor.h"
#include "cpu/device.h"
#include "io/json_check.h"
#include "io/mapped_file.h"
#include "io/output_file.h"
#include "io/safetensors_header.h"
#include "ops/copy/copy_tensor.h"

namespace quantaria::addon {
namespace {

/// Files are opened and written beside the device queue, so that both overlap. Two threads: what a write
/// costs is the system's copy into fresh pages, which one core does at about 1 GB/s. Never destroyed: they
/// may be at work while the process ends.
Executor& file_threads() {
  static Executor* const instance = std::make_unique<Executor>(2).release();
  return *instance;
}

/// An opaque JavaScript object that shares a native one.
template <class T>
class FileHandle : public Napi::ObjectWrap<FileHandle<T>> {
 public:
  static constexpr napi_type_tag kTag{0x5155414E54415249, T::kTag};

  explicit FileHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<FileHandle<T>>(info) {
    if (info.Length() != 1 || !info[0].IsExternal())
      throw to_javascript(info.Env(),
                          Error(ErrorCode::argument, "files are opened by functions, not by `new`"));
    value_ = *info[0].As<Napi::External<std::shared_ptr<typename T::File>>>().Data();
    napi_type_tag_object(info.Env(), info.This(), &kTag);
  }

  static Napi::Object make(Napi::Env env, std::shared_ptr<typename T::File> file) {
    using Payload = std::shared_ptr<typename T::File>;
    return T::constructor(env).New({Napi::External<Payload>::New(env, &file)});
  }

  static FileHandle& unwrap(Napi::Value value) {
    bool ours = false;
    if (!value.IsObject() || napi_check_object_type_tag(value.Env(), value, &kTag, &ours) != napi_ok || !ours)
      fail(ErrorCode::argument, "file: an open file expected");
    return *FileHandle::Unwrap(value.As<Napi::Object>());
  }

  /// ERR_DISPOSED if the file was closed.
  static std::shared_ptr<typename T::File> get(Napi::Value value) {
    const auto& file = unwrap(value).value_;
    if (!file) fail(ErrorCode::disposed, "file: it was closed");
    return file;
  }

  void close() { value_.reset(); }

 private:
  std::shared_ptr<typename T::File> value_;
};

struct Mapped {
  using File = io::MappedFile;
  static constexpr uint64_t kTag = 1;
  static Napi::FunctionReference& constructor(Napi::Env env) {
    return Environment::of(env).mapped_file_class;
  }
};

struct Output {
  using File = io::OutputFile;
  static constexpr uint64_t kTag = 2;
  static Napi::FunctionReference& constructor(Napi::Env env) {
    return Environment::of(env).output_file_class;
  }
};

Napi::Value header_object(Napi::Env env, const std::shared_ptr<io::MappedFile>& file,
                          const io::SafetensorsHeader& header) {
  Napi::Array tensors = Napi::Array::New(env, header.tensors.size());
  for (uint32_t i = 0; i < header.tensors.size(); ++i) {
    const io::TensorEntry& entry = header.tensors[i];
    Napi::Array shape = Napi::Array::New(env, entry.shape.size());
    for (uint32_t d = 0; d < entry.shape.size(); ++d) shape.Set(d, static_cast<double>(entry.shape[d]));
    Napi::Object tensor = Napi::Object::New(env);
    tensor.Set("name", entry.name);
    tensor.Set("dtype", std::string(entry.dtype));
    tensor.Set("shape", shape);
    tensor.Set("begin", static_cast<double>(entry.begin));
    tensor.Set("end", static_cast<double>(entry.end));
    tensors.Set(i, tensor);
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("file", FileHandle<Mapped>::make(env, file));
  result.Set("tensors", tensors);
  return result;
}

/// openSafetensors(path): a promise of {file, tensors: [{name, dtype, shape, begin, end}]}
Napi::Value open_safetensors(const Napi::CallbackInfo& info) {
  const std::string path = to_path(info[0], "path");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  file_threads().post([path, settle = settle] {
    std::shared_ptr<io::MappedFile> file;
    auto header = std::make_shared<io::SafetensorsHeader>();
    auto failure = failure_of([&] {
      file = std::make_shared<io::MappedFile>(path);
      *header = io::read_safetensors_header(path, file->data(), file->size());
    });
    settle(std::move(failure), [file, header](Napi::Env env) { return header_object(env, file, *header); });
  });
  return promise;
}

/// mappedTensor(file, begin, dtype, shape): a view of the file. Where its bytes are not aligned for the
/// dtype, which the format allows, a copy.
Napi::Value mapped_tensor(const Napi::CallbackInfo& info) {
  const auto file = FileHandle<Mapped>::get(info[0]);
  const int64_t begin = to_integer(info[1], "begin");
  Tensor view;
  view.device = &cpu::device();
  view.dtype = to_dtype(info[2], "dtype");
  view.shape = to_shape(info[3], "shape");
  view.strides = row_major(view.shape);
  view.storage = file->range(begin, view.bytes());
  if (begin % size_of(view.dtype) == 0) return TensorHandle::make_view(info.Env(), std::move(view));

  Tensor bytes = view;
  bytes.dtype = DType::uint8;
  bytes.shape = {view.bytes()};
  bytes.strides = {1};
  Tensor aligned = empty(cpu::device(), DType::uint8, bytes.shape);
  cpu::device().enqueue({bytes}, {aligned}, [=] { copy_tensor(cpu::device().pool(), bytes, aligned); });
  return TensorHandle::make(info.Env(), bitcast(aligned, view.dtype, view.shape));
}

/// mappedClose(file): views that are still in use stay valid.
Napi::Value mapped_close(const Napi::CallbackInfo& info) {
  FileHandle<Mapped>::unwrap(info[0]).close();
  return info.Env().Undefined();
}

/// checkJson(bytes, what): throws ERR_FORMAT unless the bytes are JSON without repeated names.
Napi::Value check_json(const Napi::CallbackInfo& info) {
  const std::string what = to_text(info[1], "what");
  const Bytes text = to_bytes(info[0], "text");
  io::check_json({reinterpret_cast<const char*>(text.data), static_cast<size_t>(text.size)}, what);
  return info.Env().Undefined();
}

/// outputOpen(path, bytes)
Napi::Value output_open(const Napi::CallbackInfo& info) {
  auto file = std::make_shared<io::OutputFile>(to_path(info[0], "path"), to_integer(info[1], "bytes"));
  return FileHandle<Output>::make(info.Env(), std::move(file));
}

/// outputWrite(file, offset, tensor, rowBytes, stride): a promise that settles when the tensor's bytes are in
/// the file; with a row size, each row `stride` bytes after the one before.
Napi::Value output_write(const Napi::CallbackInfo& info) {
  const auto file = FileHandle<Output>::get(info[0]);
  const int64_t offset = to_integer(info[1], "offset");
  const Tensor tensor = TensorHandle::get_anywhere(info[2], "tensor");
  if (tensor.device != &cpu::device())
    fail(ErrorCode::device, "tensor: on ", tensor.device->id(), ", files are written from the CPU's memory");
  if (!tensor.contiguous()) fail(ErrorCode::shape, "tensor: a contiguous one expected");
  const int64_t bytes = tensor.bytes();
  const int64_t row = info[3].IsUndefined() ? bytes : to_integer(info[3], "rowBytes", 1);
  const int64_t stride = info[3].IsUndefined() ? bytes : to_integer(info[4], "stride", row);
  const int64_t rows = bytes == 0 ? 0 : (bytes - 1) / row + 1;
  if (rows > 0 && offset > kMaxSafeInteger - bytes)
    fail(ErrorCode::argument, "offset: ", offset, " is too far");
  if (rows > 1 && stride > (kMaxSafeInteger - offset - bytes) / (rows - 1))
    fail(ErrorCode::argument, "stride: ", stride, " is too far for ", rows, " rows");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  // By way of the queue: the tensor is complete when its turn has come. The share outlives the handle, which
  // may be disposed of before the bytes are written.
  cpu::device().post([=, settle = settle, share = tensor.storage->share()] {
    if (tensor.storage->failure()) {
      cpu::device().told(tensor.storage->failure());
      settle(tensor.storage->failure(), nullptr);
      return;
    }
    file_threads().post([=, share = share] {
      settle(failure_of([&] {
               for (int64_t at = 0, to = offset; at < bytes; at += row, to += stride)
                 file->write(to, tensor.data() + at, std::min(row, bytes - at));
             }),
             nullptr);
    });
  });
  return promise;
}

/// outputSync(file): a promise that settles when all that was written is on the disk.
Napi::Value output_sync(const Napi::CallbackInfo& info) {
  const auto file = FileHandle<Output>::get(info[0]);
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  file_threads().post([file, settle = settle] { settle(failure_of([&] { file->sync(); }), nullptr); });
  return promise;
}

Napi::Value output_close(const Napi::CallbackInfo& info) {
  FileHandle<Output>::unwrap(info[0]).close();
  return info.Env().Undefined();
}

}  // namespace

void define_files(Napi::Env env, Napi::Object exports, Environment& environment) {
  environment.mapped_file_class =
      Napi::Persistent(FileHandle<Mapped>::DefineClass(env, "NativeMappedFile", {}));
  environment.output_file_class =
      Napi::Persistent(FileHandle<Output>::DefineClass(env, "NativeOutputFile", {}));
  exports.Set("openSafetensors", Napi::Function::New<guarded<open_safetensors>>(env));
  exports.Set("mappedTensor", Napi::Function::New<guarded<mapped_tensor>>(env));
  exports.Set("mappedClose", Napi::Function::New<guarded<mapped_close>>(env));
  exports.Set("checkJson", Napi::Function::New<guarded<check_json>>(env));
  exports.Set("outputOpen", Napi::Function::New<guarded<output_open>>(env));
  exports.Set("outputWrite", Napi::Function::New<guarded<output_write>>(env));
  exports.Set("outputSync", Napi::Function::New<guarded<output_sync>>(env));
  exports.Set("outputClose", Napi::Function::New<guarded<output_close>>(env));
}

}  // namespace quantaria::addon
