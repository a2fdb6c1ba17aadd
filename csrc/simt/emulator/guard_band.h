#pragma once

#include <algorithm>
#include <cstddef>

#include "simt/emulator/sanitizer.h"

/// Bytes behind a piece of memory that nobody may write. The address sanitizer reports the access itself;
/// elsewhere a pattern tells afterwards.
namespace quantaria::simt::emulator {

inline constexpr size_t kGuardBand = 256;
inline constexpr std::byte kGuardPattern{0xa5};

inline void draw_guard_band(std::byte* band) {
  std::fill_n(band, kGuardBand, kGuardPattern);
  poison(band, kGuardBand);
}

inline bool guard_band_intact(std::byte* band) {
  unpoison(band, kGuardBand);
  const bool intact = std::all_of(band, band + kGuardBand, [](std::byte b) { return b == kGuardPattern; });
  poison(band, kGuardBand);
  return intact;
}

}  // namespace quantaria::simt::emulator
