#include "simt_test.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>

#include "check.h"
#include "core/error.h"

namespace {

int report_to = -1;  // in a child process: where its outcome goes

[[noreturn]] void end_child(const char* outcome) {
  size_t left = std::strlen(outcome);
  while (left > 0) {
    const ssize_t written = write(report_to, outcome, left);
    if (written <= 0) break;
    outcome += written;
    left -= static_cast<size_t>(written);
  }
  // Past the thread sanitizer, whose _exit sleeps a second where there is more than one thread, and fibers
  // count.
  syscall(SYS_exit_group, 0);
  __builtin_unreachable();
}

}  // namespace

// The sanitizers' libraries call these, if they see them, before they write their reports, which take seconds
// and which nobody would read.
#define QUANTARIA_SEEN_BY_LIBRARIES extern "C" [[gnu::visibility("default")]]
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
QUANTARIA_SEEN_BY_LIBRARIES void __asan_on_error() {
  if (report_to >= 0) end_child(__asan_get_report_description());
}
#endif
#if defined(__SANITIZE_THREAD__)
QUANTARIA_SEEN_BY_LIBRARIES void __tsan_on_report(void*) {
  if (report_to >= 0) end_child("data race");
}
#endif

namespace quantaria::test {

using simt::emulator::Arrival;
using simt::emulator::Options;
using simt::emulator::Schedule;

bool full_sweep() {
  const char* const asked = std::getenv("QUANTARIA_SWEEP");
  return asked != nullptr && std::strcmp(asked, "full") == 0;
}

std::vector<int64_t> swept_rows() {
  std::vector<int64_t> rows;
  if (!full_sweep()) return rows;
  for (int64_t m = 1; m <= 17; ++m) rows.push_back(m);
  for (const int64_t m : {32, 64, 128}) rows.insert(rows.end(), {m - 1, m, m + 1});
  return rows;
}

std::vector<Options> every_order(int seeds, int resident_blocks) {
  if (full_sweep()) seeds *= 4;
  if (kThreadSanitizer) seeds = 1;  // each fiber of a child process costs it 0.6 ms, and it needs no luck
  std::vector<Options> orders;
  for (const Schedule schedule : {Schedule::fifo, Schedule::random, Schedule::priority})
    for (const Arrival arrival : {Arrival::late, Arrival::eager, Arrival::random})
      for (int seed = 1; seed <= seeds; ++seed) {
        Options options;
        options.schedule = schedule;
        options.async_copies = arrival;
        options.seed = static_cast<uint64_t>(seed);
        options.resident_blocks = resident_blocks;
        options.switch_budget = 2'000'000;
        orders.push_back(options);
      }
  return orders;
}

namespace {

std::string outcome_here(const Options& options, const std::function<bool()>& body) {
  simt::emulator::options() = options;
  std::string text;
  try {
    text = body() ? "right" : "wrong";
  } catch (const Error& error) {
    text = std::string("fault: ") + error.what();
  }
  simt::emulator::options() = {};
  return text;
}

}  // namespace

std::string outcome(const Options& options, const std::function<bool()>& body) {
  int ends[2];
  if (pipe(ends) != 0) fail(ErrorCode::io, "no pipe");
  std::fflush(nullptr);  // what waits to be written would be written by each child too
  const pid_t child = fork();
  if (child < 0) fail(ErrorCode::io, "no child process");
  if (child == 0) {
    close(ends[0]);
    report_to = ends[1];
    std::freopen("/dev/null", "w", stderr);  // reports begin before the hooks are called
    end_child(outcome_here(options, body).c_str());
  }
  close(ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t got = 0; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (text.empty()) text = "crash, status " + std::to_string(status);
  return text;
}

std::vector<std::string> outcomes(const std::vector<Options>& orders, const std::function<bool()>& body) {
  std::vector<std::string> all;
  for (const Options& options : orders) {
    std::string text = outcome(options, body);
    if (text != "right") all.push_back(std::move(text));
  }
  if (all.empty()) all.emplace_back("right");
  return all;
}

bool any_contains(const std::vector<std::string>& texts, const std::string& part) {
  return std::any_of(texts.begin(), texts.end(),
                     [&](const std::string& text) { return text.find(part) != std::string::npos; });
}

std::vector<SyncSite> drop_each_sync(const std::vector<Options>& orders, const std::function<bool()>& body,
                                     Orders which) {
  std::vector<std::string> places;
  Options listing = orders.front();
  listing.keeps_sync = [&](const simt::Site& site) {
    const std::string place = simt::emulator::text(site);
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
    return true;
  };
  outcome_here(listing, body);
  const char* const log = std::getenv("QUANTARIA_SYNC_LOG");
  std::vector<SyncSite> sites;
  for (const std::string& place : places) {
    SyncSite site{place, 0, 0};
    for (Options options : orders) {
      options.keeps_sync = [&](const simt::Site& at) { return simt::emulator::text(at) != place; };
      ++site.runs;
      site.noticed += outcome(options, body) != "right";
      if (site.noticed > 0 && which == Orders::first_that_notices) break;
    }
    if (log != nullptr)
      std::ofstream(log, std::ios::app) << place << " " << site.noticed << " " << site.runs << "\n";
    sites.push_back(site);
  }
  return sites;
}

void require_right(const char* file, int line, const std::vector<Options>& orders,
                   const std::function<bool()>& body) {
  if (!kThreadSanitizer) {
    for (const std::string& text : outcomes(orders, body))
      if (text != "right") report(file, line, text);
    return;
  }
  for (size_t i = 0; i < orders.size(); i += 4) {  // of 3 x 3: the first, the middle and the last
    const std::string text = outcome_here(orders[i], body);
    if (text != "right") report(file, line, text);
  }
}

void require_each_sync(const char* file, int line, const std::vector<std::function<bool()>>& bodies,
                       const std::vector<Options>& orders, const std::vector<std::string>& files) {
  const auto asked = [&](const std::string& place) {
    return files.empty() || std::any_of(files.begin(), files.end(),
                                        [&](const std::string& name) { return place.rfind(name, 0) == 0; });
  };
  std::map<std::string, int> noticed;
  for (const auto& body : bodies) {
    require_right(file, line, orders, body);
    if (kThreadSanitizer) continue;
    for (const SyncSite& site : drop_each_sync(orders, body)) noticed[site.place] += site.noticed;
  }
  for (const std::string& name : files)
    if (!kThreadSanitizer && std::none_of(noticed.begin(), noticed.end(),
                                          [&](const auto& site) { return site.first.rfind(name, 0) == 0; }))
      report(file, line, "no barrier of " + name + " was come to");
  for (const auto& [place, times] : noticed)
    if (times == 0 && asked(place)) report(file, line, place + " could go unnoticed");
}

}  // namespace quantaria::test
