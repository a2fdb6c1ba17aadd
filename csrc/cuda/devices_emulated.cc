// In place of devices.cc where CUDA kernels are emulated: one device, by way of the runtime that the host
// plays.
#include <cstdlib>
#include <cstring>
#include <utility>

#include "cuda/cublaslt/library.h"
#include "cuda/device.h"
#include "cuda/runtime/device.h"
#include "simt/runtime/controls.h"

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

}  // namespace

Status status() {
  Status none;
  none.reason = "this build emulates CUDA on the CPU: cuda-emulated is its device";
  none.cublaslt = cublaslt::report();
  return none;
}

const std::vector<Device*>& devices() {
  static const std::vector<Device*> one = [] {
    simt::runtime::emulate_launches(options_from_environment());
    DeviceFacts facts = discover("80-real").usable.at(0);
    facts.id = facts.kind = "cuda-emulated";
    return std::vector<Device*>{std::make_unique<RuntimeDevice>(std::move(facts), kernels()).release()};
  }();
  return one;
}

}  // namespace quantaria::cuda
