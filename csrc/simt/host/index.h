#pragma once

#include <cstdint>

/// CUDA's built-in vector types and variables as far as kernels use them. They have CUDA's names and no
/// namespace, as kernels have on a GPU.

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

// Of the running fiber: set at every switch.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local dim3 blockDim;
inline constinit thread_local dim3 gridDim;

namespace quantaria::simt {
inline constexpr unsigned kWarpSize = 32;
}
