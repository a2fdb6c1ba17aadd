#pragma once

#include <cstddef>

#include "ops/gemm/column_splits.cuh"
#include "ops/gemm/epilogue.cuh"
#include "ops/gemm/product_tiles.cuh"
#include "simt/simt.h"

/// Products of 16-bit factors on tensor cores, plain or grouped.
namespace quantaria::ops {

/// Where a group's right factor lies; null: this launch is not for that group.
struct DenseSource {
  const std::byte* data = nullptr;
  constexpr bool there() const { return data != nullptr; }
};

/// c = a b + bias, or with groups as ProductTiles says. The right factor of group e is that of b's shape and
/// strides at sources[e], or in pairs at sources[2 e] (gate) and sources[2 e + 1] (up).
struct DenseCall {
  simt::Stream stream;
  ConstMatrix a;
  ConstMatrix b;
  const DenseSource* sources;  // in device memory, or null for b itself
  bool sources_aligned;        // all of them to 16 bytes
  ProductTiles tiles;
  Epilogue epilogue;
  int splits = 1;       // of the columns, between blocks: 1 if grouped
  ColumnSplits sums{};  // if there are several
};

/// Whether tensor cores take factors of these dtypes and strides.
bool dense_on_tensor_cores(const ConstMatrix& a, const ConstMatrix& b);

/// On tensor cores.
void launch_dense_product(const DenseCall& call);

/// The same by fused multiply-add, of any strides and of float32, float16 or bfloat16 each.
void launch_dense_fma_product(const DenseCall& call);

}  // namespace quantaria::ops
