#include "addon/graphs.h"

#include <memory>
#include <utility>

#include "addon/arguments.h"
#include "addon/devices.h"
#include "addon/environment.h"
#include "core/attempt.h"
#include "cpu/device.h"
#include "cuda/device.h"

namespace quantaria::addon {
namespace {

cuda::Device& to_cuda(Napi::Value value) {
  Device& device = to_device(value, "device");
  if (&device == &cpu::device())
    fail(ErrorCode::unsupported, "device: operations of the CPU are not launched from graphs");
  return cuda::of(&device);
}

/// captureStart(device): operations queued from here to captureEnd are noted down instead of done
Napi::Value capture_start(const Napi::CallbackInfo& info) {
  cuda::Device& device = to_cuda(info[0]);
  device.open_capture();
  Environment::of(info.Env()).captures->insert(&device);
  device.post([&device] {
    // What fails here, captureEnd tells.
    (void)failure_of([&] { device.begin_capture(); });
  });
  return info.Env().Undefined();
}

/// captureEnd(device): a promise of the graph's number
Napi::Value capture_end(const Napi::CallbackInfo& info) {
  cuda::Device& device = to_cuda(info[0]);
  if (Environment::of(info.Env()).captures->erase(&device) == 0)
    fail(ErrorCode::argument, "device: no graph is being captured on ", device.id());
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  device.post([&device, settle = settle] {
    std::shared_ptr<cuda::Graph> graph;
    const std::shared_ptr<const Error> failure = failure_of([&] { graph = device.end_capture(); });
    settle(failure, [&device, graph = std::move(graph)](Napi::Env env) -> Napi::Value {
      Environment& environment = Environment::of(env);
      const uint32_t number = environment.next_graph++;
      environment.graphs.emplace(number, CapturedGraph{&device, graph});
      return Napi::Number::New(env, number);
    });
  });
  return promise;
}

/// graphLaunch(number): queued like an operation
Napi::Value graph_launch(const Napi::CallbackInfo& info) {
  const Environment& environment = Environment::of(info.Env());
  const auto found = environment.graphs.find(static_cast<uint32_t>(to_integer(info[0], "graph")));
  if (found == environment.graphs.end()) fail(ErrorCode::disposed, "graph: it was disposed");
  found->second.device->enqueue({}, {}, [graph = found->second.graph] { graph->launch(); });
  return info.Env().Undefined();
}

/// graphDispose(number): once the queue has come to it; twice is no error
Napi::Value graph_dispose(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  const auto found = environment.graphs.find(static_cast<uint32_t>(to_integer(info[0], "graph")));
  if (found == environment.graphs.end()) return info.Env().Undefined();
  found->second.device->post([graph = std::move(found->second.graph)] {});
  environment.graphs.erase(found);
  return info.Env().Undefined();
}

}  // namespace

void abandon_captures(const std::set<cuda::Device*>& captures) {
  for (cuda::Device* const device : captures)
    device->post([device] { (void)failure_of([&] { (void)device->end_capture(); }); });
}

void define_graphs(Napi::Env env, Napi::Object exports) {
  exports.Set("captureStart", Napi::Function::New<guarded<capture_start>>(env));
  exports.Set("captureEnd", Napi::Function::New<guarded<capture_end>>(env));
  exports.Set("graphLaunch", Napi::Function::New<guarded<graph_launch>>(env));
  exports.Set("graphDispose", Napi::Function::New<guarded<graph_dispose>>(env));
}

}  // namespace quantaria::addon
