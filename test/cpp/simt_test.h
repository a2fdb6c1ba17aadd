#pragma once

#include <functional>
#include <string>
#include <vector>

#include "simt/simt.h"

/// Kernels run in every order, and in a child process, where a sanitizer may end them.
namespace quantaria::test {

/// Whether the whole sweep is asked for (QUANTARIA_SWEEP=full): more seeds, and shapes that a test else
/// skips.
bool full_sweep();

/// In the whole sweep every count of rows that tiles treat in a way of its own: 1 to 17, and about 32, 64 and
/// 128. Else none: tests have some of them among their shapes.
std::vector<int64_t> swept_rows();

/// Options of every schedule x arrival of cp.async x seed 1 to `seeds`, four times as many in the whole
/// sweep.
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
/// it is not right. One is enough, unless `all` are asked for. QUANTARIA_SYNC_LOG names a file that keeps
/// them.
struct SyncSite {
  std::string place;
  int noticed = 0;
  int runs = 0;
};
enum class Orders : uint8_t { first_that_notices, all };
std::vector<SyncSite> drop_each_sync(const std::vector<simt::emulator::Options>& orders,
                                     const std::function<bool()>& body,
                                     Orders which = Orders::first_that_notices);

/// body() has to be right in all of `orders`. For the thread sanitizer it is run in this process, where
/// a report names its places, and in one order of each kind: a race is one in any order.
void require_right(const char* file, int line, const std::vector<simt::emulator::Options>& orders,
                   const std::function<bool()>& body);

/// Each of the bodies has to be right in all of `orders`, and none of the barriers and waits that they come
/// to, of those in `files` (by how their names begin; all if there are none), may be missing unnoticed by all
/// of them.
void require_each_sync(const char* file, int line, const std::vector<std::function<bool()>>& bodies,
                       const std::vector<simt::emulator::Options>& orders = every_order(1),
                       const std::vector<std::string>& files = {});

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

/// All of them; for the thread sanitizer, which takes ten times as long and finds a race in any shape and any
/// values, every `step`-th.
template <class List>
auto thinned(const List& list, size_t step) {
  const std::vector all(std::begin(list), std::end(list));
  if (!kThreadSanitizer || full_sweep()) return all;
  auto some = all;
  some.clear();
  for (size_t i = 0; i < all.size(); i += step) some.push_back(all[i]);
  return some;
}

}  // namespace quantaria::test
