#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "core/matrix.h"
#include "cuda/cublaslt/library.h"

namespace quantaria::cuda {
class Device;
}

namespace quantaria::cuda::cublaslt {

/// Fewer rows than our kernels' tile wait for the weight to be read, whoever multiplies.
inline constexpr int64_t kLeastRows = 64;
/// 64 rows by 4096 x 4096: 7 us of an A100's 312 TFLOP/s, 2 us of an H100's 989, and the longer reading of
/// 32 MB. The library's call costs the host some microseconds more than a launch of ours: of a product of
/// this size or more they are hidden behind the one before it.
inline constexpr int64_t kLeastOperations = int64_t{1} << 31;

/// Whether c = a b + bias is a product for the library, which its shape, dtypes, strides and alignment alone
/// decide: a and b of one 16-bit dtype, c of that or float32, m >= kLeastRows, 2 m n k >= kLeastOperations;
/// a's rows contiguous along k, b's along either, c's along n, and all of them beginning at multiples of 16
/// bytes; bias of c's dtype: then, as in our epilogue, it is added in float32 before the one rounding.
bool takes(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias, const Matrix& c);

/// Products on one device. All calls are for tasks of its queue.
class Products {
 public:
  /// ERR_CUDA if the library does not take the device.
  Products(const Library& library, Device& device);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  /// c = a b + bias in the order of the device's stream, for what takes() says. Sums in float32, also those
  /// of the parts where several blocks share one, rounded once. Which of its kernels is run, the library is
  /// asked once for each shape: the same input gives the same bits as long as the process runs.
  /// ERR_UNSUPPORTED if it has no kernel, ERR_CUDA if it fails otherwise.
  void multiply(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias, const Matrix& c);

 private:
  struct Problem;
  struct Choice {
    Algorithm algorithm;
    int64_t workspace_bytes;
  };
  /// Of a product: m, n, k, three strides, dtypes, orientation of b, bias.
  using Key = std::array<int64_t, 10>;

  const Choice& choice_for(const Key& key, const Problem& problem);
  [[noreturn]] void fail_with(Result result, const char* what) const;
  void require(Result result, const char* what) const {
    if (result != Result::success) fail_with(result, what);
  }

  const Library& library_;
  Device& device_;
  Handle handle_ = nullptr;
  std::map<Key, Choice> choices_;
};

}  // namespace quantaria::cuda::cublaslt
