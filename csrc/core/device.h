#pragma once

#include <chrono>
#include <functional>
#include <initializer_list>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "core/storage.h"
#include "core/tensor.h"

namespace quantaria {

/// The storages of an operation's tensors, which is all that a queue wants to know of them.
class Storages {
 public:
  Storages() = default;
  Storages(std::initializer_list<std::reference_wrapper<const Tensor>> tensors) {
    all_.reserve(tensors.size());
    for (const Tensor& tensor : tensors) add(tensor);
  }
  Storages(const std::vector<Tensor>& tensors) { add(tensors); }

  void add(const Tensor& tensor) { all_.push_back(tensor.storage); }
  void add(const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) add(tensor);
  }

  /// Of the first one that is invalid, or null.
  std::shared_ptr<const Error> failure() const;
  void set_failure(const std::shared_ptr<const Error>& failure) const;

 private:
  std::vector<std::shared_ptr<Storage>> all_;
};

/// One in-order queue and the memory that its work lives in.
class Device {
 public:
  virtual ~Device() = default;

  virtual const std::string& id() const = 0;
  virtual std::shared_ptr<Storage> allocate(int64_t bytes) = 0;
  virtual MemoryCounters memory() const = 0;

  /// Runs `task` after everything that was given before. It must not throw.
  virtual void post(std::function<void()> task) = 0;

  /// Bytes of host memory to and from this device's. For tasks of its queue. copy_in returns when it needs
  /// `host` no more, copy_out when the bytes are there: it waits for the work that makes them.
  virtual void copy_in(const std::byte* host, std::byte* to, int64_t bytes) = 0;
  virtual void copy_out(const std::byte* from, std::byte* host, int64_t bytes) = 0;
  virtual void zero(std::byte* to, int64_t bytes) = 0;

  /// Queues an operation that reads `inputs` and writes `outputs`. If an input is invalid, the outputs take
  /// over its failure and `body` is not run; if `body` throws, they take that. Either way the failure
  /// surfaces where the outputs are read, or at the next synchronize. `from` names the operation where it
  /// fails after its body has returned.
  void enqueue(Storages inputs, Storages outputs, std::function<void()> body,
               const std::source_location& from = std::source_location::current());

  /// For tasks of its queue: waits for all work that earlier ones have begun, and throws what went wrong with
  /// it.
  virtual void finish() {}

  /// For tasks of its queue: the seconds that the work between them took. stop_timer waits as finish() does.
  virtual void start_timer() { started_ = std::chrono::steady_clock::now(); }
  virtual double stop_timer() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  }

  /// The first failure that nobody has been told of since the last call, or null. In queue order.
  std::shared_ptr<const Error> take_failure();

  /// Call when a failure has reached the user, so that it is not told twice.
  void told(const std::shared_ptr<const Error>& failure);

 protected:
  /// Before an operation's body; throws if the device can do no more.
  virtual void begin(const std::source_location&) {}
  /// After it: what the operation failed with, given what it threw, or null.
  virtual std::shared_ptr<const Error> end(std::shared_ptr<const Error> thrown) { return thrown; }
  /// Instead of both, for an operation that is not run as an input is invalid.
  virtual void skip(const std::shared_ptr<const Error>&) {}

 private:
  std::shared_ptr<const Error> untold_;
  std::chrono::steady_clock::time_point started_;
};

/// A contiguous tensor with undefined contents.
Tensor empty(Device& device, DType dtype, Shape shape);

/// The same values on another device, once both queues have come to it. `source` must be contiguous
/// (ERR_SHAPE).
Tensor transferred(const Tensor& source, Device& device);

}  // namespace quantaria
