// Stands in for libcublasLt.so where kernels are emulated: a library of its own, which QUANTARIA_CUBLASLT can
// name. It has what csrc/cuda/cublaslt calls and refuses whatever the vendor's documentation does not allow;
// its products are plain loops, done when the stream comes to them.
//   QUANTARIA_STANDIN_LOG=FILE  each product is written there, one JSON object a line
//   QUANTARIA_STANDIN_FAULT=version|create|choose|none|multiply|work  what goes wrong
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/cublaslt/api.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "simt/runtime/stream.h"

namespace quantaria::cuda::cublaslt {

struct HandleContents {};

struct MatmulContents {
  Transform transform_a = Transform::none;
  Transform transform_b = Transform::none;
  Epilogue epilogue = Epilogue::plain;
  const std::byte* bias = nullptr;
};

struct LayoutContents {
  DataType type;
  uint64_t rows;
  uint64_t cols;
  int64_t stride;

  uint64_t bytes() const;
};

struct PreferenceContents {
  uint64_t most_workspace_bytes = 0;
  uint32_t reduction_mask = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace {

constexpr uint64_t kMark = 0x6f8c21d5;  // what an algorithm of ours begins with
constexpr uint64_t kWorkspaceAlignment = 256;

uint64_t size_of(DataType type) { return type == DataType::real_32f ? 4 : 2; }

bool known(DataType type) {
  return type == DataType::real_32f || type == DataType::real_16f || type == DataType::real_16bf;
}

bool faulty(const char* what) {
  const char* const set = std::getenv("QUANTARIA_STANDIN_FAULT");
  return set != nullptr && std::strcmp(set, what) == 0;
}

bool aligned(const void* place, uint64_t bytes) { return reinterpret_cast<uintptr_t>(place) % bytes == 0; }

float value_at(const void* data, DataType type, uint64_t i) {
  switch (type) {
    case DataType::real_16f:
      return numerics::float_from_half(static_cast<const uint16_t*>(data)[i]);
    case DataType::real_16bf:
      return numerics::float_from_bfloat16(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

void put(void* data, DataType type, uint64_t i, float value) {
  switch (type) {
    case DataType::real_16f:
      static_cast<uint16_t*>(data)[i] = numerics::half_from_float(value);
      break;
    case DataType::real_16bf:
      static_cast<uint16_t*>(data)[i] = numerics::bfloat16_from_float(value);
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

/// d [rows, cols] = op(a) [rows, depth] op(b) [depth, cols], all column-major.
struct Problem {
  MatmulContents matmul;
  LayoutContents a;
  LayoutContents b;
  LayoutContents d;

  bool a_turned() const { return matmul.transform_a == Transform::transposed; }
  bool b_turned() const { return matmul.transform_b == Transform::transposed; }
  uint64_t depth() const { return a_turned() ? a.rows : a.cols; }
  bool with_bias() const { return matmul.epilogue == Epilogue::bias; }
  /// Deep ones are cut in two halves, and one half's sums wait in the workspace.
  bool halved() const { return depth() > d.rows; }
  uint64_t workspace_bytes() const { return halved() ? d.rows * d.cols * sizeof(float) : 0; }
  /// What an algorithm was chosen for.
  uint64_t shape() const {
    uint64_t all = 0;
    for (const uint64_t part :
         {d.rows, d.cols, depth(), static_cast<uint64_t>(a.type), static_cast<uint64_t>(d.type),
          uint64_t{a_turned()}, uint64_t{b_turned()}, uint64_t{with_bias()}})
      all = all * 1000003 + part;
    return all;
  }
};

/// What goes together, by the vendor's table for sums and factors of float32.
Result check(const Problem& p, const LayoutContents& c) {
  const uint64_t a_rows = p.a_turned() ? p.a.cols : p.a.rows;
  const uint64_t b_rows = p.b_turned() ? p.b.cols : p.b.rows;
  const uint64_t b_cols = p.b_turned() ? p.b.rows : p.b.cols;
  if (a_rows != p.d.rows || b_rows != p.depth() || b_cols != p.d.cols || c.rows != p.d.rows ||
      c.cols != p.d.cols)
    return Result::invalid_value;
  if (p.a.type != p.b.type || p.a.type == DataType::real_32f || c.type != p.d.type ||
      (p.d.type != p.a.type && p.d.type != DataType::real_32f))
    return Result::not_supported;
  if (p.with_bias() && p.matmul.bias == nullptr) return Result::invalid_value;
  return Result::success;
}

/// sum [cols][rows] += the terms of depth from `first` to `end`, in that order.
void add_terms(const Problem& p, const void* a, const void* b, uint64_t first, uint64_t end, float* sum) {
  constexpr uint64_t kBlock = 64;
  const uint64_t rows = p.d.rows;
  const auto a_stride = static_cast<uint64_t>(p.a.stride);
  const auto b_stride = static_cast<uint64_t>(p.b.stride);
  std::vector<float> lines(kBlock * rows);  // of op(a): [depth][rows]
  for (uint64_t from = first; from < end; from += kBlock) {
    const uint64_t count = std::min(kBlock, end - from);
    for (uint64_t i = 0; i < count; ++i)
      for (uint64_t r = 0; r < rows; ++r)
        lines[i * rows + r] =
            value_at(a, p.a.type, p.a_turned() ? r * a_stride + from + i : (from + i) * a_stride + r);
    for (uint64_t c = 0; c < p.d.cols; ++c)
      for (uint64_t i = 0; i < count; ++i) {
        const float factor =
            value_at(b, p.b.type, p.b_turned() ? (from + i) * b_stride + c : c * b_stride + from + i);
        const float* const line = &lines[i * rows];
        float* const to = &sum[c * rows];
        for (uint64_t r = 0; r < rows; ++r) to[r] += factor * line[r];
      }
  }
}

void multiply(const Problem& p, const void* a, const void* b, void* d, float* half) {
  const uint64_t rows = p.d.rows;
  const uint64_t split = p.halved() ? p.depth() / 2 : 0;
  std::vector<float> sum(rows * p.d.cols);
  if (p.halved()) {
    std::fill_n(half, rows * p.d.cols, 0.0f);
    add_terms(p, a, b, 0, split, half);
  }
  add_terms(p, a, b, split, p.depth(), sum.data());
  for (uint64_t c = 0; c < p.d.cols; ++c)
    for (uint64_t r = 0; r < rows; ++r) {
      float value = sum[c * rows + r];
      if (p.halved()) value += half[c * rows + r];
      if (p.with_bias()) value += value_at(p.matmul.bias, p.d.type, r);
      put(d, p.d.type, c * static_cast<uint64_t>(p.d.stride) + r, value);
    }
}

const char* name_of(DataType type) {
  return type == DataType::real_32f ? "float32" : type == DataType::real_16f ? "float16" : "bfloat16";
}

void note(const Problem& p, uint64_t workspace_bytes) {
  const char* const file = std::getenv("QUANTARIA_STANDIN_LOG");
  if (file == nullptr) return;
  std::ofstream(file, std::ios::app) << "{\"m\":" << p.d.cols << ",\"n\":" << p.d.rows
                                     << ",\"k\":" << p.depth() << ",\"factors\":\"" << name_of(p.a.type)
                                     << "\",\"result\":\"" << name_of(p.d.type)
                                     << "\",\"bias\":" << (p.with_bias() ? "true" : "false")
                                     << ",\"workspace\":" << workspace_bytes << "}\n";
}

/// Takes over a value whose size must be right.
template <class T>
Result set(T& to, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return Result::invalid_value;
  std::memcpy(&to, value, bytes);
  return Result::success;
}

template <class T>
Result destroyed(T* contents) {
  if (contents == nullptr) return Result::invalid_value;
  const std::unique_ptr<T> gone(contents);
  return Result::success;
}

}  // namespace

uint64_t LayoutContents::bytes() const {
  return ((cols - 1) * static_cast<uint64_t>(stride) + rows) * size_of(type);
}

extern "C" {

#define QUANTARIA_EXPORT __attribute__((visibility("default")))

QUANTARIA_EXPORT size_t cublasLtGetVersion() { return faulty("version") ? 110902 : 130000; }

QUANTARIA_EXPORT const char* cublasLtGetStatusName(Result result) {
  switch (result) {
    case Result::success:
      return "CUBLAS_STATUS_SUCCESS";
    case Result::not_initialized:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case Result::alloc_failed:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case Result::invalid_value:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case Result::execution_failed:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case Result::not_supported:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "<unknown>";
}

QUANTARIA_EXPORT Result cublasLtCreate(Handle* handle) {
  if (handle == nullptr) return Result::invalid_value;
  if (faulty("create")) return Result::not_initialized;
  *handle = std::make_unique<HandleContents>().release();
  return Result::success;
}

QUANTARIA_EXPORT Result cublasLtDestroy(Handle handle) { return destroyed(handle); }

QUANTARIA_EXPORT Result cublasLtMatmulDescCreate(Matmul* matmul, ComputeType compute, DataType scale) {
  if (matmul == nullptr || compute != ComputeType::real_32f || scale != DataType::real_32f)
    return Result::invalid_value;
  *matmul = std::make_unique<MatmulContents>().release();
  return Result::success;
}

QUANTARIA_EXPORT Result cublasLtMatmulDescDestroy(Matmul matmul) { return destroyed(matmul); }

QUANTARIA_EXPORT Result cublasLtMatmulDescSetAttribute(Matmul matmul, MatmulAttribute attribute,
                                                       const void* value, size_t bytes) {
  if (matmul == nullptr) return Result::invalid_value;
  switch (attribute) {
    case MatmulAttribute::transform_a:
      return set(matmul->transform_a, value, bytes);
    case MatmulAttribute::transform_b:
      return set(matmul->transform_b, value, bytes);
    case MatmulAttribute::epilogue:
      return set(matmul->epilogue, value, bytes);
    case MatmulAttribute::bias_pointer:
      return set(matmul->bias, value, bytes);
  }
  return Result::invalid_value;
}

QUANTARIA_EXPORT Result cublasLtMatrixLayoutCreate(Layout* layout, DataType type, uint64_t rows,
                                                   uint64_t cols, int64_t stride) {
  if (layout == nullptr) return Result::invalid_value;
  *layout = std::make_unique<LayoutContents>(LayoutContents{type, rows, cols, stride}).release();
  return Result::success;
}

QUANTARIA_EXPORT Result cublasLtMatrixLayoutDestroy(Layout layout) { return destroyed(layout); }

QUANTARIA_EXPORT Result cublasLtMatmulPreferenceCreate(Preference* preference) {
  if (preference == nullptr) return Result::invalid_value;
  *preference = std::make_unique<PreferenceContents>().release();
  return Result::success;
}

QUANTARIA_EXPORT Result cublasLtMatmulPreferenceDestroy(Preference preference) {
  return destroyed(preference);
}

QUANTARIA_EXPORT Result cublasLtMatmulPreferenceSetAttribute(Preference preference,
                                                             PreferenceAttribute attribute, const void* value,
                                                             size_t bytes) {
  if (preference == nullptr) return Result::invalid_value;
  switch (attribute) {
    case PreferenceAttribute::most_workspace_bytes:
      return set(preference->most_workspace_bytes, value, bytes);
    case PreferenceAttribute::reduction_mask:
      return set(preference->reduction_mask, value, bytes);
    case PreferenceAttribute::alignment_a:
      return set(preference->alignment[0], value, bytes);
    case PreferenceAttribute::alignment_b:
      return set(preference->alignment[1], value, bytes);
    case PreferenceAttribute::alignment_c:
      return set(preference->alignment[2], value, bytes);
    case PreferenceAttribute::alignment_d:
      return set(preference->alignment[3], value, bytes);
  }
  return Result::invalid_value;
}

/// Only sums whose parts stay float32 are taken here, so a mask that allows any others is refused.
QUANTARIA_EXPORT Result cublasLtMatmulAlgoGetHeuristic(Handle handle, Matmul matmul, Layout a, Layout b,
                                                       Layout c, Layout d, Preference preference, int most,
                                                       Heuristic* found, int* count) {
  if (handle == nullptr) return Result::not_initialized;
  if (matmul == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr ||
      preference == nullptr || found == nullptr || count == nullptr || most < 1)
    return Result::invalid_value;
  *count = 0;
  if (faulty("choose")) return Result::not_supported;
  if (faulty("none")) return Result::success;
  const Problem problem{*matmul, *a, *b, *d};
  if (const Result result = check(problem, *c); result != Result::success) return result;
  for (const LayoutContents* layout : {a, b, c, d})
    if (!known(layout->type) || layout->rows == 0 || layout->cols == 0 || layout->rows > 0x7fffffff ||
        layout->cols > 0x7fffffff || layout->stride < static_cast<int64_t>(layout->rows))
      return Result::invalid_value;
  if (preference->reduction_mask != static_cast<uint32_t>(Reduction::compute_type))
    return Result::not_supported;
  if (problem.workspace_bytes() > preference->most_workspace_bytes) return Result::not_supported;
  *found = {};
  const uint32_t* const alignment = preference->alignment;
  const uint64_t bias = problem.with_bias() ? reinterpret_cast<uintptr_t>(matmul->bias) : 0;
  found->algorithm = {{kMark, problem.shape(), alignment[0], alignment[1], alignment[2], alignment[3],
                       bias & (~bias + 1), problem.workspace_bytes()}};
  found->workspace_bytes = problem.workspace_bytes();
  *count = 1;
  return Result::success;
}

QUANTARIA_EXPORT Result cublasLtMatmul(Handle handle, Matmul matmul, const void* alpha, const void* a,
                                       Layout a_layout, const void* b, Layout b_layout, const void* beta,
                                       const void* c, Layout c_layout, void* d, Layout d_layout,
                                       const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                                       Stream opaque_stream) {
  if (handle == nullptr) return Result::not_initialized;
  if (matmul == nullptr || alpha == nullptr || a == nullptr || a_layout == nullptr || b == nullptr ||
      b_layout == nullptr || beta == nullptr || c == nullptr || c_layout == nullptr || d == nullptr ||
      d_layout == nullptr || algorithm == nullptr || opaque_stream == nullptr)
    return Result::invalid_value;
  if (faulty("multiply")) return Result::execution_failed;
  const Problem problem{*matmul, *a_layout, *b_layout, *d_layout};
  if (const Result result = check(problem, *c_layout); result != Result::success) return result;
  const auto& [mark, shape, align_a, align_b, align_c, align_d, align_bias, needed] = algorithm->data;
  if (mark != kMark || shape != problem.shape() || needed > workspace_bytes ||
      (needed > 0 && (workspace == nullptr || !aligned(workspace, kWorkspaceAlignment))))
    return Result::invalid_value;
  if (!aligned(a, align_a) || !aligned(b, align_b) || !aligned(c, align_c) || !aligned(d, align_d) ||
      (problem.with_bias() && !aligned(matmul->bias, align_bias)))
    return Result::invalid_value;
  // Nothing but the plain product is asked for.
  if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0)
    return Result::not_supported;
  note(problem, needed);
  auto* const stream = reinterpret_cast<CUstream_st*>(opaque_stream);
  const auto work = [=, bytes = needed, broken = faulty("work")]() -> const char* {
    const auto held = [&](const void* place, uint64_t count) {
      return stream->services->holds(stream, place, count);
    };
    if (broken) return "the product goes wrong";
    if (!held(a, problem.a.bytes()) || !held(b, problem.b.bytes()) || !held(d, problem.d.bytes()) ||
        (bytes > 0 && !held(workspace, bytes)) ||
        (problem.with_bias() && !held(problem.matmul.bias, problem.d.rows * size_of(problem.d.type))))
      return "a product outside of the device's memory";
    multiply(problem, a, b, d, static_cast<float*>(workspace));
    return nullptr;
  };
  return stream->services->launch(stream, work) == 0 ? Result::success : Result::execution_failed;
}

}  // extern "C"

/// The functions have the types by which they are called.
[[maybe_unused]] constexpr Functions kAll{.version = cublasLtGetVersion,
                                          .name_of = cublasLtGetStatusName,
                                          .create = cublasLtCreate,
                                          .destroy = cublasLtDestroy,
                                          .create_matmul = cublasLtMatmulDescCreate,
                                          .destroy_matmul = cublasLtMatmulDescDestroy,
                                          .set_matmul = cublasLtMatmulDescSetAttribute,
                                          .create_layout = cublasLtMatrixLayoutCreate,
                                          .destroy_layout = cublasLtMatrixLayoutDestroy,
                                          .create_preference = cublasLtMatmulPreferenceCreate,
                                          .destroy_preference = cublasLtMatmulPreferenceDestroy,
                                          .set_preference = cublasLtMatmulPreferenceSetAttribute,
                                          .choose = cublasLtMatmulAlgoGetHeuristic,
                                          .multiply = cublasLtMatmul};

}  // namespace quantaria::cuda::cublaslt
