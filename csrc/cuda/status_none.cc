// Stands in for status.cu in a build without CUDA.
#include "cuda/status.h"

namespace quantaria::cuda {

Status status() { return {.reason = "this build has no CUDA backend: it was compiled without nvcc"}; }

}  // namespace quantaria::cuda
