// The devices of a build with nvcc. QUANTARIA_CUDA_ARCHITECTURES is what CMake had the kernels compiled for.
#include "cuda/cublaslt/library.h"
#include "cuda/device.h"
#include "cuda/runtime/device.h"
#include "cuda/runtime/discovery.h"

namespace quantaria::cuda {

Status status() {
  Status found = discover(QUANTARIA_CUDA_ARCHITECTURES).status;
  if (found.available) found.cublaslt = cublaslt::report();
  return found;
}

const std::vector<Device*>& devices() {
  static const std::vector<Device*> all = [] {
    std::vector<Device*> usable;
    for (DeviceFacts& facts : discover(QUANTARIA_CUDA_ARCHITECTURES).usable)
      usable.push_back(std::make_unique<RuntimeDevice>(std::move(facts), kernels()).release());
    return usable;
  }();
  return all;
}

}  // namespace quantaria::cuda
