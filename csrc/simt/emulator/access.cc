#include <string>

#include "simt/emulator/global_memory.h"
#include "simt/emulator/machine.h"
#include "simt/host/memory.h"

namespace quantaria::simt::emulator {

void* shared_memory(size_t bytes, const Site& site) {
  Machine& here = machine();
  if (bytes > here.shared_bytes())
    fault("shared() of " + std::to_string(bytes) + " bytes, the launch gave " +
              std::to_string(here.shared_bytes()),
          site);
  return here.current().block->shared;
}

void require_aligned(const void* place, size_t alignment, const char* what, const Site& site) {
  const size_t rest = reinterpret_cast<uintptr_t>(place) % alignment;
  if (rest != 0)
    fault("misaligned " + std::string(what) + ": " + std::to_string(rest) + " past a multiple of " +
              std::to_string(alignment),
          site);
}

void require_global(const void* place, size_t bytes, const char* what, const Site& site) {
  const GlobalMemory* const global = machine().options().global;
  if (global) global->require_inside(place, bytes, what, site);
}

void require_shared(const void* place, size_t bytes, const char* what, const Site& site) {
  Machine& here = machine();
  const std::byte* const begin = here.current().block->shared;
  const auto* const first = static_cast<const std::byte*>(place);
  if (first < begin || first + bytes > begin + here.shared_bytes())
    fault(std::string(what) + " outside of shared memory", site);
}

}  // namespace quantaria::simt::emulator
