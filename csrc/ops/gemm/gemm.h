#pragma once

#include "core/matrix.h"
#include "core/thread_pool.h"

namespace quantaria::ops {

/// Which part of a product is wanted. upper: only tiles that hold some c(i, j) with j >= i are computed; the
/// others are left as they are.
enum class Part : uint8_t { all, upper };

struct GemmOptions {
  bool accumulate = false;
  float alpha = 1;
  Part part = Part::all;
  bool bfloat16 = false;  // products of factors rounded to bfloat16, where instructions for them are faster
};

/// c = alpha * a b (+ c). a [m, k] and b [k, n]: float32, float16 or bfloat16, any strides; c [m, n]:
/// float32, any row stride, unit column stride. Products (unless asked otherwise) and sums in float32; where
/// sums are cut depends on the shape alone, so any number of threads gives the same bits on one instruction
/// set.
void gemm(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix& b, const Matrix& c,
          const GemmOptions& options = {});

}  // namespace quantaria::ops
