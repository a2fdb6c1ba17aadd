#pragma once

#include <string>

namespace quantaria::cuda {

/// Whether CUDA devices can be used, and in one sentence why not.
struct Status {
  bool available = false;
  std::string reason;   // empty if available
  std::string driver;   // version of CUDA that the driver supports, "13.0"; empty without a driver
  std::string runtime;  // version that this build contains; empty in a build without CUDA
};

Status status();

}  // namespace quantaria::cuda
