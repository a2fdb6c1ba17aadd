#pragma once

#include <source_location>
#include <string>

#include "core/error.h"

namespace quantaria::simt {

/// A place in a kernel's source: the default argument of every call that can go wrong.
using Site = std::source_location;

namespace emulator {

/// What a kernel did that a GPU forbids or leaves undefined; launch() throws it. The message says which
/// thread, what and where.
class Fault : public Error {
 public:
  explicit Fault(const std::string& message) : Error(ErrorCode::cuda, message) {}
};

/// "copy_cuda.cu:41:7"
std::string text(const Site& site);

/// Throws a Fault: the running thread's block and number, `what`, and the place.
[[noreturn]] void fault(const std::string& what, const Site& site);

}  // namespace emulator
}  // namespace quantaria::simt
