#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/status.h"

namespace quantaria::cuda {

/// What is known of a device before anything runs on it.
struct DeviceFacts {
  int ordinal = 0;  // CUDA's number of it
  std::string id;
  std::string kind;
  std::string name;
  int64_t memory_bytes = 0;
  std::string compute_capability;
};

struct Discovery {
  Status status;
  std::vector<DeviceFacts> usable;
};

/// Asks the CUDA runtime, without making a context anywhere: that would take memory and a good part of a
/// second on each device. `architectures` is what the kernels were compiled for, in CMake's words:
/// "80-real,90-real,90-virtual".
Discovery discover(std::string_view architectures);

/// Whether machine code of the same major version, or PTX that is not newer, is among `architectures`.
bool has_code_for(int major, int minor, std::string_view architectures);

}  // namespace quantaria::cuda
