#pragma once

#include "simt/simt.h"

namespace quantaria::ops {

/// Which of Rows x Across pieces of a tile each of Threads threads brings into shared memory: neighbours
/// bring neighbouring pieces. The same ones in every step, so what they need is worked out before the first.
template <int Rows, int Across, int Threads>
struct ThreadPieces {
  static constexpr int kAll = Rows * Across;
  static constexpr int kCount = (kAll + Threads - 1) / Threads;

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  /// Whether this thread has a j-th piece.
  static __device__ __forceinline__ bool has(int j) {
    return (j + 1) * Threads <= kAll || thread() + j * Threads < kAll;
  }
  static __device__ __forceinline__ int row(int j) {
    if constexpr (Threads % Across == 0) return thread() / Across + j * (Threads / Across);
    return (thread() + j * Threads) / Across;
  }
  static __device__ __forceinline__ int across(int j) {
    if constexpr (Threads % Across == 0) return thread() % Across;
    return (thread() + j * Threads) % Across;
  }
};

}  // namespace quantaria::ops
