// Stands in for the CUDA backend in a build without nvcc.
#include "cuda/device.h"
#include "cuda/status.h"

namespace quantaria::cuda {

Status status() {
  Status none;
  none.reason = "this build has no CUDA backend: it was compiled without nvcc";
  return none;
}

const std::vector<Device*>& devices() {
  static const std::vector<Device*> none;
  return none;
}

}  // namespace quantaria::cuda
