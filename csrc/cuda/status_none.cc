// Stands in for status.cu in a build without CUDA.
#include "cuda/status.h"

namespace quantaria::cuda {

Status status() {
  Status none;
  none.reason = "this build has no CUDA backend: it was compiled without nvcc";
  return none;
}

}  // namespace quantaria::cuda
