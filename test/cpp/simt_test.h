#pragma once

#include <functional>
#include <string>
#include <vector>

#include "simt/simt.h"

/// Kernels run in every order, and in a child process, where a sanitizer may end them.
namespace quantaria::test {

/// Options of every schedule x arrival of cp.async x seed 1 to `seeds`.
std::vector<simt::emulator::Options> every_order(int seeds, int resident_blocks = 1);

/// How a run ended: "right" or "wrong" as `body` returns, "fault: ..." with its message, or what a sanitizer
/// says. In a child process: of one that has run fibers itself, the thread sanitizer sees nothing any more.
std::string outcome(const simt::emulator::Options& options, const std::function<bool()>& body);

/// Outcomes other than "right" over `orders`, one after the other; one "right" if there are none.
std::vector<std::string> outcomes(const std::vector<simt::emulator::Options>& orders,
                                  const std::function<bool()>& body);

/// Whether any of `texts` contains `part`.
bool any_contains(const std::vector<std::string>& texts, const std::string& part);

/// For each barrier and wait that `body` comes to, "file:line:column": in how many of `orders` a run without
/// it is not right.
struct SyncSite {
  std::string place;
  int noticed = 0;
  int runs = 0;
};
std::vector<SyncSite> drop_each_sync(const std::vector<simt::emulator::Options>& orders,
                                     const std::function<bool()>& body);

inline constexpr bool kAddressSanitizer =
#if defined(__SANITIZE_ADDRESS__)
    true;
#else
    false;
#endif

inline constexpr bool kThreadSanitizer =
#if defined(__SANITIZE_THREAD__)
    true;
#else
    false;
#endif

}  // namespace quantaria::test
