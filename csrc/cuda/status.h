#pragma once

#include <string>
#include <utility>
#include <vector>

namespace quantaria::cuda {

/// Whether large dense products go to the vendor's library (cublaslt/library.h), and in one sentence why not.
struct VendorLibrary {
  bool used = false;
  std::string reason;  // empty if used
  std::string version;
  std::string path;
};

/// Whether CUDA devices can be used, and in one sentence why not.
struct Status {
  bool available = false;
  std::string reason;   // empty if available
  std::string driver;   // version of CUDA that the driver supports, "13.0"; empty without a driver
  std::string runtime;  // version that this build contains; empty in a build without CUDA
  std::vector<std::pair<std::string, std::string>>
      refused;  // id and reason of each device that cannot be used
  VendorLibrary cublaslt{false, "no CUDA device can be used", "", ""};
};

Status status();

}  // namespace quantaria::cuda
