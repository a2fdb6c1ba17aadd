// The accesses that the emulator makes for a kernel, apart from the scheduler: here the thread sanitizer must
// see them.
#include <cstring>

#include "simt/emulator/async_copies.h"
#include "simt/emulator/sanitizer.h"

namespace quantaria::simt::emulator {

void spoil(std::byte* to, int bytes, uint32_t pattern) {
  for (int i = 0; i < bytes; i += 4) std::memcpy(to + i, &pattern, sizeof pattern);
  poison(to, static_cast<size_t>(bytes));
}

void transfer(std::byte* to, const std::byte* from, int bytes, bool wanted) {
  unpoison(to, static_cast<size_t>(bytes));
  // Word by word, as instrumented stores: the thread sanitizer loses a memcpy that the scheduler leads to.
  for (int i = 0; i < bytes; i += 4) {
    uint32_t word = 0;
    if (wanted) std::memcpy(&word, from + i, sizeof word);
    std::memcpy(to + i, &word, sizeof word);
  }
}

}  // namespace quantaria::simt::emulator
