// In place of devices_none.cc where CUDA kernels are emulated: one device, whose launches run on its queue
// thread.
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/executor.h"
#include "cuda/device.h"
#include "simt/emulator/global_memory.h"
#include "simt/emulator/options.h"

namespace quantaria::cuda {
namespace {

using simt::emulator::Arrival;
using simt::emulator::Schedule;

/// One of the names in an environment variable; the first if it is not set, ERR_ARGUMENT for anything else.
int choice(const char* variable, std::initializer_list<const char*> names) {
  const char* const value = std::getenv(variable);
  if (!value) return 0;
  int index = 0;
  for (const char* name : names) {
    if (std::strcmp(value, name) == 0) return index;
    ++index;
  }
  fail(ErrorCode::argument, variable, "=", value, " is not known");
}

/// QUANTARIA_SIMT_SCHEDULE=fifo|random|priority, QUANTARIA_SIMT_COPIES=late|eager|random,
/// QUANTARIA_SIMT_SEED=n
simt::emulator::Options options_from_environment() {
  simt::emulator::Options options;
  options.schedule = static_cast<Schedule>(choice("QUANTARIA_SIMT_SCHEDULE", {"fifo", "random", "priority"}));
  options.async_copies = static_cast<Arrival>(choice("QUANTARIA_SIMT_COPIES", {"late", "eager", "random"}));
  if (const char* const seed = std::getenv("QUANTARIA_SIMT_SEED"))
    options.seed = std::strtoull(seed, nullptr, 10);
  return options;
}

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice() : options_(options_from_environment()) { options_.global = memory_.get(); }

  const std::string& id() const override { return id_; }
  const std::string& kind() const override { return id_; }
  const std::string& name() const override { return name_; }
  int64_t memory_bytes() const override { return physical_memory(); }
  const std::string& compute_capability() const override { return capability_; }
  const Kernels& kernels() const override { return cuda::kernels(); }
  void* stream() override { return nullptr; }

  std::shared_ptr<Storage> allocate(int64_t bytes) override {
    std::shared_ptr<std::byte> block = memory_->allocate(bytes);
    std::byte* const data = block.get();
    return std::make_shared<Storage>(std::move(block), data, bytes, true);
  }

  void post(std::function<void()> task) override {
    queue_.post([this, task = std::move(task)] {
      simt::emulator::options() = options_;
      task();
    });
  }

  void copy_in(const std::byte* host, std::byte* to, int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, host, static_cast<size_t>(bytes));
  }

  /// What kernels wrote beside their tensors comes to light here.
  void copy_out(const std::byte* from, std::byte* host, int64_t bytes) override {
    memory_->require_intact();
    copy_in(from, host, bytes);
  }

  void zero(std::byte* to, int64_t bytes) override {
    if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
  }

 private:
  std::string id_ = "cuda-emulated";
  std::string name_ = "CUDA kernels emulated on the CPU";
  std::string capability_ = "8.0";
  std::shared_ptr<simt::emulator::GlobalMemory> memory_ = std::make_shared<simt::emulator::GlobalMemory>();
  simt::emulator::Options options_;
  Executor queue_;
};

}  // namespace

const std::vector<Device*>& devices() {
  static const std::vector<Device*> one{std::make_unique<EmulatedDevice>().release()};
  return one;
}

}  // namespace quantaria::cuda
