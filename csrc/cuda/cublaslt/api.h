#pragma once

#include <cstddef>
#include <cstdint>

/// What is called of cuBLASLt's C interface, in our own words: its headers are not needed to build. Values
/// and layouts are those of versions 12 and 13, which agree in all of this.
namespace quantaria::cuda::cublaslt {

enum class Result : int {  // cublasStatus_t
  success = 0,
  not_initialized = 1,
  alloc_failed = 3,
  invalid_value = 7,
  execution_failed = 13,
  not_supported = 15,
};
enum class DataType : int { real_32f = 0, real_16f = 2, real_16bf = 14 };  // cudaDataType_t
enum class ComputeType : int { real_32f = 68 };                            // cublasComputeType_t
enum class Transform : int32_t { none = 0, transposed = 1 };               // cublasOperation_t
enum class Epilogue : uint32_t { plain = 1, bias = 4 };                    // cublasLtEpilogue_t
/// cublasLtReductionScheme_t: where the parts of sums that several blocks share are added up.
enum class Reduction : uint32_t { none = 0, compute_type = 2 };

enum class MatmulAttribute : int {  // cublasLtMatmulDescAttributes_t
  transform_a = 3,                  // Transform
  transform_b = 4,                  // Transform
  epilogue = 7,                     // Epilogue
  bias_pointer = 8,                 // const void*: to elements of the result's type
};
enum class PreferenceAttribute : int {  // cublasLtMatmulPreferenceAttributes_t
  most_workspace_bytes = 1,             // uint64_t
  reduction_mask = 3,                   // uint32_t
  alignment_a = 5,                      // uint32_t, in bytes
  alignment_b = 6,
  alignment_c = 7,
  alignment_d = 8,
};

using Handle = struct HandleContents*;          // cublasLtHandle_t
using Matmul = struct MatmulContents*;          // cublasLtMatmulDesc_t
using Layout = struct LayoutContents*;          // cublasLtMatrixLayout_t: column-major unless told otherwise
using Preference = struct PreferenceContents*;  // cublasLtMatmulPreference_t
using Stream = struct StreamContents*;          // cudaStream_t

struct Algorithm {  // cublasLtMatmulAlgo_t
  uint64_t data[8];
};
struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  Algorithm algorithm;
  size_t workspace_bytes;
  Result state;
  float waves;
  int reserved[4];
};

/// The functions, each beside its name.
struct Functions {
  size_t (*version)();                                                      // cublasLtGetVersion
  const char* (*name_of)(Result);                                           // cublasLtGetStatusName
  Result (*create)(Handle*);                                                // cublasLtCreate
  Result (*destroy)(Handle);                                                // cublasLtDestroy
  Result (*create_matmul)(Matmul*, ComputeType, DataType scale);            // cublasLtMatmulDescCreate
  Result (*destroy_matmul)(Matmul);                                         // cublasLtMatmulDescDestroy
  Result (*set_matmul)(Matmul, MatmulAttribute, const void*, size_t);       // cublasLtMatmulDescSetAttribute
  Result (*create_layout)(Layout*, DataType, uint64_t rows, uint64_t cols,  // cublasLtMatrixLayoutCreate
                          int64_t leading_dimension);
  Result (*destroy_layout)(Layout);                          // cublasLtMatrixLayoutDestroy
  Result (*create_preference)(Preference*);                  // cublasLtMatmulPreferenceCreate
  Result (*destroy_preference)(Preference);                  // cublasLtMatmulPreferenceDestroy
  Result (*set_preference)(Preference, PreferenceAttribute,  // cublasLtMatmulPreferenceSetAttribute
                           const void*, size_t);
  Result (*choose)(Handle, Matmul, Layout a, Layout b,  // cublasLtMatmulAlgoGetHeuristic
                   Layout c, Layout d, Preference, int most, Heuristic*, int* count);
  Result (*multiply)(Handle, Matmul, const void* alpha,  // cublasLtMatmul: d = alpha op(a) op(b) + beta c
                     const void* a, Layout, const void* b, Layout, const void* beta, const void* c, Layout,
                     void* d, Layout, const Algorithm*, void* workspace, size_t workspace_bytes, Stream);
};

}  // namespace quantaria::cuda::cublaslt
