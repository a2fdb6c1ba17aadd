#include "cuda/runtime/graph.h"

#include <utility>

#include "cuda/runtime/call.h"

namespace quantaria::cuda {

RuntimeGraph::RuntimeGraph(std::shared_ptr<Lane> lane, cudaGraph_t noted,
                           std::vector<std::shared_ptr<std::byte>> blocks)
    : lane_(std::move(lane)), blocks_(std::move(blocks)) {
  const cudaError_t made = cudaGraphInstantiate(&ready_, noted, 0);
  (void)cudaGraphDestroy(noted);
  lane_->require(made, "making a graph ready");
}

RuntimeGraph::~RuntimeGraph() {
  const DeviceScope scope(lane_->ordinal());
  (void)cudaGraphExecDestroy(ready_);
  (void)cudaGetLastError();
}

void RuntimeGraph::launch() {
  lane_->require_no_capture("another graph");
  lane_->require(cudaGraphLaunch(ready_, lane_->stream()), "launching a graph");
}

}  // namespace quantaria::cuda
