#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "cuda/device.h"
#include "cuda/runtime/lane.h"

namespace quantaria::cuda {

/// What a stream has noted down, with the memory that was taken meanwhile. The tensors that the work reads
/// have to be kept by whoever launches it.
class RuntimeGraph final : public Graph {
 public:
  /// Takes `noted` over. ERR_CUDA if it cannot be made ready.
  RuntimeGraph(std::shared_ptr<Lane> lane, cudaGraph_t noted, std::vector<std::shared_ptr<std::byte>> blocks);
  /// Does not wait, which would spoil a capture: CUDA keeps what a launch under way needs, and the memory
  /// goes back behind it.
  ~RuntimeGraph() override;
  RuntimeGraph(const RuntimeGraph&) = delete;
  RuntimeGraph& operator=(const RuntimeGraph&) = delete;

  void launch() override;

 private:
  const std::shared_ptr<Lane> lane_;
  const std::vector<std::shared_ptr<std::byte>> blocks_;
  cudaGraphExec_t ready_ = nullptr;
};

}  // namespace quantaria::cuda
