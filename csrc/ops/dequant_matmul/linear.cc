#include <algorithm>
#include <cmath>

#include "ops/bitpack/bitpack.h"
#include "ops/copy/convert.h"
#include "ops/dequant_matmul/dequant_matmul.h"
#include "ops/dequant_matmul/kernels.h"
#include "ops/gemm/gemm.h"
#include "ops/llm_int8/llm_int8.h"

namespace quantaria::ops {
namespace {

/// What is added to a product before it is rounded: a bias, and a matrix of y's shape (null: none).
class Addends {
 public:
  Addends(const ConstMatrix* bias, const std::vector<float>* matrix, const Matrix& y)
      : matrix_(matrix), y_(y) {
    if (bias == nullptr) return;
    bias_.resize(static_cast<size_t>(y.cols));
    convert_row(bias->dtype, bias->data, DType::float32, reinterpret_cast<std::byte*>(bias_.data()), y.cols);
  }

  void store(const Piece& piece) const {
    for (int64_t r = 0; r < piece.rows; ++r) {
      float* const row = piece.c[0] + r * piece.stride;
      const int64_t at = (piece.row + r) * y_.cols + piece.column;
      if (matrix_ != nullptr)
        for (int64_t j = 0; j < piece.columns; ++j) row[j] += (*matrix_)[static_cast<size_t>(at + j)];
      if (!bias_.empty())
        for (int64_t j = 0; j < piece.columns; ++j) row[j] += bias_[static_cast<size_t>(piece.column + j)];
      convert_row(DType::float32, reinterpret_cast<const std::byte*>(row), y_.dtype,
                  y_.data + ((piece.row + r) * y_.row_stride + piece.column) * size_of(y_.dtype),
                  piece.columns);
    }
  }

 private:
  std::vector<float> bias_;
  const std::vector<float>* matrix_;
  const Matrix& y_;
};

ConstMatrix floats(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), DType::float32, rows, cols, cols, 1};
}

/// Chosen columns of a weight in tiles, dequantized: [columns, out].
std::vector<float> dequantized_columns(const uint8_t* packed, const float* absmax, int64_t out, int64_t in,
                                       const std::vector<int64_t>& columns) {
  const int64_t row_bytes = packed_row_bytes(in, 8);
  std::vector<float> values(columns.size() * static_cast<size_t>(out));
  float* to = values.data();
  for (const int64_t column : columns)
    for (int64_t n = 0; n < out; ++n) {
      const int64_t tile = n / kTileRows;
      const int64_t rows = std::min<int64_t>(kTileRows, out - tile * kTileRows);
      const int64_t word = column / 4 * rows + n % kTileRows;
      const int code = packed[tile * kTileRows * row_bytes + word * 4 + column % 4];
      *to++ = static_cast<float>(code - 128) * absmax[n] / 127;
    }
  return values;
}

}  // namespace

void linear(ThreadPool& pool, const ConstMatrix& x, const Factor& weight, const ConstMatrix* bias,
            const Matrix& y) {
  const Addends addends(bias, nullptr, y);
  Product product;
  product.rows = {x, nullptr, x.rows, nullptr};
  product.factors[0] = &weight;
  product.store = [&](const Piece& piece) { addends.store(piece); };
  multiply_all(pool, {product});
}

void llm_int8_linear(ThreadPool& pool, const ConstMatrix& x, float threshold, const uint8_t* packed,
                     const float* absmax, const ConstMatrix* bias, const Matrix& y) {
  std::vector<uint8_t> mask(static_cast<size_t>(x.cols));
  outlier_mask(pool, x, threshold, mask.data());
  const std::vector<int64_t> columns = outlier_columns(mask.data(), x.cols);
  std::vector<float> scales(static_cast<size_t>(x.rows));
  std::vector<int8_t> codes(static_cast<size_t>(x.rows * x.cols));
  quantize_activations(pool, x, threshold, mask.data(), scales.data(), codes.data(), x.cols);
  for (float& scale : scales) scale /= 127;

  std::vector<float> outliers;
  if (!columns.empty()) {
    const auto count = static_cast<int64_t>(columns.size());
    std::vector<std::byte> gathered(static_cast<size_t>(x.rows * count * size_of(x.dtype)));
    gather_columns(pool, x, columns, gathered.data());
    const std::vector<float> weights = dequantized_columns(packed, absmax, y.cols, x.cols, columns);
    outliers.resize(static_cast<size_t>(x.rows * y.cols));
    gemm(pool, {gathered.data(), x.dtype, x.rows, count, count, 1}, floats(weights, count, y.cols),
         {reinterpret_cast<std::byte*>(outliers.data()), DType::float32, x.rows, y.cols, y.cols, 1});
  }
  const Addends addends(bias, columns.empty() ? nullptr : &outliers, y);
  const std::unique_ptr<Factor> factor =
      llm_int8_products(packed, absmax, y.cols, x.cols).factor(Operand::int8, DType::float32);
  Product product;
  product.rows = {{reinterpret_cast<const std::byte*>(codes.data()), DType::int8, x.rows, x.cols, x.cols, 1},
                  nullptr,
                  x.rows,
                  scales.data()};
  product.factors[0] = factor.get();
  product.store = [&](const Piece& piece) { addends.store(piece); };
  multiply_all(pool, {product});
}

}  // namespace quantaria::ops
