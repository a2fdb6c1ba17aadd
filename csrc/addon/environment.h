#pragma once

#include <napi.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "core/error.h"

namespace quantaria::cuda {
class Device;
class Graph;
}  // namespace quantaria::cuda

namespace quantaria::addon {

/// Makes the value that a promise resolves to. Runs on the JavaScript thread.
using Result = std::function<Napi::Value(Napi::Env)>;

/// The way from native threads back to one JavaScript thread.
class Channel;

/// Settles one promise, from any thread. Must be called exactly once: the environment's end waits for it.
class Settle {
 public:
  Settle(std::shared_ptr<Channel> channel, uint64_t id) : channel_(std::move(channel)), id_(id) {}
  /// Resolves with `result`, or rejects if there is a failure.
  void operator()(std::shared_ptr<const Error> failure, Result result) const;

 private:
  std::shared_ptr<Channel> channel_;
  uint64_t id_;
};

/// A graph and where it is launched.
struct CapturedGraph {
  cuda::Device* device;
  std::shared_ptr<cuda::Graph> graph;
};

/// What one JavaScript environment (the main thread, a worker) owns. Devices belong to the process.
class Environment {
 public:
  Environment(Napi::Env env, Napi::Object exports);

  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  /// A promise, and what settles it. `keep`, if there is one, stays reachable until then.
  std::pair<Napi::Promise, Settle> promise(Napi::Env env, Napi::Object keep = {});

  Napi::FunctionReference tensor_class;
  Napi::FunctionReference weight_class;
  Napi::FunctionReference mapped_file_class;
  Napi::FunctionReference output_file_class;

  /// Work noted down on CUDA devices, by the number that JavaScript has of it (addon/graphs.cc).
  std::unordered_map<uint32_t, CapturedGraph> graphs;
  uint32_t next_graph = 1;
  /// Devices on which it has begun a capture that it has not ended.
  const std::shared_ptr<std::set<cuda::Device*>> captures = std::make_shared<std::set<cuda::Device*>>();

 private:
  friend class Channel;
  struct Pending {
    Napi::Promise::Deferred deferred;
    Napi::ObjectReference keep;
  };
  void deliver(Napi::Env env, uint64_t id, const std::shared_ptr<const Error>& failure, const Result& result);

  std::shared_ptr<Channel> channel_;
  std::unordered_map<uint64_t, Pending> pending_;
  uint64_t next_id_ = 0;
};

}  // namespace quantaria::addon
