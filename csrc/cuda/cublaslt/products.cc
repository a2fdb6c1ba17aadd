#include "cuda/cublaslt/products.h"

#include <memory>
#include <string>
#include <utility>

#include "core/error.h"
#include "cuda/device.h"

namespace quantaria::cuda::cublaslt {
namespace {

constexpr int64_t kAlignment = 16;  // bytes: what vector loads of every kernel ask for
constexpr uint64_t kMostWorkspace = uint64_t{32} << 20;
constexpr int64_t kMostExtent = 0x7fffffff;  // larger ones are not promised to work

bool is_16_bit(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }

DataType data_type(DType dtype) {
  return dtype == DType::float32   ? DataType::real_32f
         : dtype == DType::float16 ? DataType::real_16f
                                   : DataType::real_16bf;
}

/// Rows of `row` elements, `stride` elements apart.
bool holds_rows(const std::byte* data, DType dtype, int64_t rows, int64_t row, int64_t stride) {
  return rows <= kMostExtent && row <= kMostExtent && stride <= kMostExtent && stride >= row &&
         stride * size_of(dtype) % kAlignment == 0 && reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
}

bool rows_along_k(const ConstMatrix& b) { return b.row_stride == 1; }

/// Gives back what it holds by one of the library's functions.
template <class T>
class Owned {
 public:
  explicit Owned(Result (*destroy)(T)) : destroy_(destroy) {}
  ~Owned() {
    if (held_ != nullptr) (void)destroy_(held_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  T get() const { return held_; }
  T* place() { return &held_; }

 private:
  T held_ = nullptr;
  Result (*destroy_)(T);
};

}  // namespace

bool takes(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias, const Matrix& c) {
  const int64_t m = c.rows;
  const int64_t n = c.cols;
  const int64_t k = a.cols;
  if (!is_16_bit(a.dtype) || b.dtype != a.dtype || (c.dtype != a.dtype && c.dtype != DType::float32))
    return false;
  if (m < kLeastRows || a.col_stride != 1 || c.col_stride != 1 ||
      !holds_rows(a.data, a.dtype, m, k, a.row_stride) || !holds_rows(c.data, c.dtype, m, n, c.row_stride))
    return false;
  const bool b_is_right = rows_along_k(b)     ? holds_rows(b.data, b.dtype, n, k, b.col_stride)
                          : b.col_stride == 1 ? holds_rows(b.data, b.dtype, k, n, b.row_stride)
                                              : false;
  const bool bias_is_right = bias == nullptr || (bias->dtype == c.dtype && bias->col_stride == 1 &&
                                                 reinterpret_cast<uintptr_t>(bias->data) % kAlignment == 0);
  return b_is_right && bias_is_right && k > 0 && m * n >= (kLeastOperations / 2 + k - 1) / k;
}

/// A row-major matrix is a column-major one transposed: c^T [n, m] = b^T [n, k] a^T [k, m], where the
/// library's first factor is b as it lies, its second a, and the rows of its result are c's columns.
struct Products::Problem {
  Owned<Matmul> matmul;
  Owned<Layout> first;
  Owned<Layout> second;
  Owned<Layout> result;

  explicit Problem(const Functions& call)
      : matmul(call.destroy_matmul),
        first(call.destroy_layout),
        second(call.destroy_layout),
        result(call.destroy_layout) {}
};

Products::Products(const Library& library, Device& device) : library_(library), device_(device) {
  const Result created = library_.call.create(&handle_);
  if (created != Result::success)
    fail(ErrorCode::cuda, device_.id(), ": cuBLASLt ", library_.version, " (", library_.path,
         ") does not take it: ", library_.call.name_of(created));
}

Products::~Products() { (void)library_.call.destroy(handle_); }

void Products::fail_with(Result result, const char* what) const {
  fail(result == Result::not_supported  ? ErrorCode::unsupported
       : result == Result::alloc_failed ? ErrorCode::out_of_memory
                                        : ErrorCode::cuda,
       device_.id(), ": cuBLASLt ", library_.version, ": ", what, ": ", library_.call.name_of(result),
       " (without QUANTARIA_CUBLASLT, built-in kernels do it)");
}

const Products::Choice& Products::choice_for(const Key& key, const Problem& problem) {
  if (const auto known = choices_.find(key); known != choices_.end()) return known->second;
  const Functions& call = library_.call;
  Owned<Preference> preference(call.destroy_preference);
  require(call.create_preference(preference.place()), "asking for a kernel");
  const auto prefer = [&](PreferenceAttribute attribute, auto value) {
    require(call.set_preference(preference.get(), attribute, &value, sizeof value), "asking for a kernel");
  };
  prefer(PreferenceAttribute::most_workspace_bytes, kMostWorkspace);
  // No parts of sums that are rounded to c's dtype before they are added up.
  prefer(PreferenceAttribute::reduction_mask, Reduction::compute_type);
  // What all products of this shape have, not what this one happens to: the choice is kept.
  for (const auto attribute : {PreferenceAttribute::alignment_a, PreferenceAttribute::alignment_b,
                               PreferenceAttribute::alignment_c, PreferenceAttribute::alignment_d})
    prefer(attribute, static_cast<uint32_t>(kAlignment));
  Heuristic best{};
  int count = 0;
  const Result asked =
      call.choose(handle_, problem.matmul.get(), problem.first.get(), problem.second.get(),
                  problem.result.get(), problem.result.get(), preference.get(), 1, &best, &count);
  require(asked == Result::success && count == 0 ? Result::not_supported : asked,
          "it has no kernel for a product of this shape");
  require(best.state, "it has no kernel for a product of this shape");
  return choices_.emplace(key, Choice{best.algorithm, static_cast<int64_t>(best.workspace_bytes)})
      .first->second;
}

void Products::multiply(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
                        const Matrix& c) {
  const Functions& call = library_.call;
  const bool along_k = rows_along_k(b);
  const int64_t b_stride = along_k ? b.col_stride : b.row_stride;
  constexpr const char* kDescribing = "describing a product";
  Problem problem(call);
  const auto describe = [&](Owned<Layout>& layout, DType dtype, int64_t rows, int64_t row, int64_t stride) {
    require(call.create_layout(layout.place(), data_type(dtype), static_cast<uint64_t>(row),
                               static_cast<uint64_t>(rows), stride),
            kDescribing);
  };
  describe(problem.first, b.dtype, along_k ? c.cols : a.cols, along_k ? a.cols : c.cols, b_stride);
  describe(problem.second, a.dtype, c.rows, a.cols, a.row_stride);
  describe(problem.result, c.dtype, c.rows, c.cols, c.row_stride);
  require(call.create_matmul(problem.matmul.place(), ComputeType::real_32f, DataType::real_32f), kDescribing);
  const auto set = [&](MatmulAttribute attribute, auto value) {
    require(call.set_matmul(problem.matmul.get(), attribute, &value, sizeof value), kDescribing);
  };
  set(MatmulAttribute::transform_a, along_k ? Transform::transposed : Transform::none);
  set(MatmulAttribute::transform_b, Transform::none);
  if (bias != nullptr) {
    set(MatmulAttribute::epilogue, Epilogue::bias);
    // A place that is aligned no better than any: while a kernel is chosen, only that is looked at.
    set(MatmulAttribute::bias_pointer, reinterpret_cast<const void*>(kAlignment));
  }
  const Choice& choice =
      choice_for({c.rows, c.cols, a.cols, a.row_stride, b_stride, c.row_stride, static_cast<int64_t>(a.dtype),
                  static_cast<int64_t>(c.dtype), along_k, bias != nullptr},
                 problem);
  if (bias != nullptr) set(MatmulAttribute::bias_pointer, static_cast<const void*>(bias->data));
  // Taken for each product, as our kernels take theirs: most need none, and a graph keeps what it takes.
  std::shared_ptr<Storage> workspace;
  if (choice.workspace_bytes > 0) workspace = device_.allocate(choice.workspace_bytes);
  const float one = 1;
  const float zero = 0;
  require(call.multiply(handle_, problem.matmul.get(), &one, b.data, problem.first.get(), a.data,
                        problem.second.get(), &zero, c.data, problem.result.get(), c.data,
                        problem.result.get(), &choice.algorithm, workspace ? workspace->data() : nullptr,
                        static_cast<size_t>(choice.workspace_bytes), static_cast<Stream>(device_.stream())),
          "multiplying");
}

}  // namespace quantaria::cuda::cublaslt
