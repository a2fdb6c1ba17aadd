#include "addon/environment.h"

#include "addon/arguments.h"
#include "addon/bits.h"
#include "addon/compare.h"
#include "addon/decoder.h"
#include "addon/devices.h"
#include "addon/files.h"
#include "addon/gptq.h"
#include "addon/graphs.h"
#include "addon/hadamard.h"
#include "addon/info.h"
#include "addon/llm_int8.h"
#include "addon/matmul.h"
#include "addon/moe.h"
#include "addon/quantize.h"
#include "addon/scaling.h"
#include "addon/tensor_handle.h"
#include "addon/tensor_ops.h"
#include "addon/weight.h"

namespace quantaria::addon {

/// The end of an environment waits for what is under way (see close): native threads may be writing
/// into its ArrayBuffers.
class Channel {
 public:
  Channel(Napi::Env env, Environment* environment) : environment_(environment) {
    function_ = Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}),
                                              "quantaria", 0, 1);
    function_.Unref(env);
  }

  void begin(Napi::Env env) {
    const std::lock_guard lock(mutex_);
    // The event loop stays alive while a promise is pending.
    if (undelivered_++ == 0) function_.Ref(env);
    ++under_way_;
  }

  void settle(uint64_t id, std::shared_ptr<const Error> failure, Result result) {
    const std::lock_guard lock(mutex_);
    if (open_) {
      function_.NonBlockingCall([this, id, failure = std::move(failure), result = std::move(result)](
                                    Napi::Env env, Napi::Function) { deliver(env, id, failure, result); });
    }
    --under_way_;
    idle_.notify_all();
  }

  void close() {
    std::unique_lock lock(mutex_);
    open_ = false;
    idle_.wait(lock, [&] { return under_way_ == 0; });
    function_.Release();
  }

 private:
  void deliver(Napi::Env env, uint64_t id, const std::shared_ptr<const Error>& failure,
               const Result& result) {
    {
      const std::lock_guard lock(mutex_);
      if (!open_) return;
      if (--undelivered_ == 0) function_.Unref(env);
    }
    environment_->deliver(env, id, failure, result);
  }

  Environment* environment_;
  Napi::ThreadSafeFunction function_;
  std::mutex mutex_;
  std::condition_variable idle_;
  bool open_ = true;
  int64_t under_way_ = 0;
  int64_t undelivered_ = 0;
};

void Settle::operator()(std::shared_ptr<const Error> failure, Result result) const {
  channel_->settle(id_, std::move(failure), std::move(result));
}

Environment::Environment(Napi::Env env, Napi::Object exports) {
  channel_ = std::make_shared<Channel>(env, this);
  // After the channel's own hooks, so that this one runs before them.
  env.AddCleanupHook([channel = channel_, captures = captures] {
    abandon_captures(*captures);
    channel->close();
  });
  define_tensor(env, exports, *this);
  define_tensor_ops(env, exports);
  define_bits(env, exports);
  define_quantize(env, exports);
  define_gptq(env, exports);
  define_scaling(env, exports);
  define_compare(env, exports);
  define_weight(env, exports, *this);
  define_matmul(env, exports);
  define_moe(env, exports);
  define_decoder(env, exports);
  define_experts(env, exports);
  define_llm_int8(env, exports);
  define_hadamard(env, exports);
  define_files(env, exports, *this);
  define_info(env, exports);
  define_devices(env, exports);
  define_graphs(env, exports);
}

std::pair<Napi::Promise, Settle> Environment::promise(Napi::Env env, Napi::Object keep) {
  const uint64_t id = next_id_++;
  auto deferred = Napi::Promise::Deferred::New(env);
  pending_.emplace(id, Pending{deferred, keep.IsEmpty() ? Napi::ObjectReference() : Napi::Persistent(keep)});
  channel_->begin(env);
  return {deferred.Promise(), Settle(channel_, id)};
}

void Environment::deliver(Napi::Env env, uint64_t id, const std::shared_ptr<const Error>& failure,
                          const Result& result) {
  const auto found = pending_.find(id);
  if (found == pending_.end()) return;
  const Napi::Promise::Deferred deferred = found->second.deferred;
  pending_.erase(found);
  if (failure) {
    deferred.Reject(to_javascript(env, *failure).Value());
    return;
  }
  try {
    deferred.Resolve(result ? result(env) : env.Undefined());
  } catch (const Napi::Error& error) {
    deferred.Reject(error.Value());
  } catch (const Error& error) {
    deferred.Reject(to_javascript(env, error).Value());
  }
}

}  // namespace quantaria::addon

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(std::make_unique<quantaria::addon::Environment>(env, exports).release());
  return exports;
}

NODE_API_MODULE(quantaria, initialize)
