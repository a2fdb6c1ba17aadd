// Run under the thread sanitizer too (npm run test:cpp): plain memory is written by bodies and read after the
// loop, so that a missing order between threads shows.
#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace quantaria {
namespace {

/// Each iteration writes its own cell; the number of cells that hold `round` afterwards.
int64_t run_round(ThreadPool& pool, std::vector<int64_t>& cells, int64_t round) {
  pool.parallel_for(static_cast<int64_t>(cells.size()),
                    [&](int64_t i) { cells[static_cast<size_t>(i)] = round; });
  return std::count(cells.begin(), cells.end(), round);
}

}  // namespace

TEST("threads: loops close together and far apart run every iteration before they return") {
  for (const int threads : {2, 3, 16}) {
    ThreadPool pool(threads);
    std::vector<int64_t> two(2), many(97);
    int64_t wrong = 0;
    for (int64_t round = 1; round <= 600; ++round) {
      wrong += run_round(pool, two, round) != 2;
      wrong += run_round(pool, many, round) != 97;
      // Workers asleep, about to fall asleep, and looking.
      if (round % 10 == 0) std::this_thread::sleep_for(std::chrono::microseconds(round));
    }
    CHECK_EQ(wrong, 0);
  }
}

TEST("threads: iterations of very different length all run before the loop returns") {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::vector<int> done(8);
    pool.parallel_for(8, [&](int64_t i) {
      if (i == round % 8) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      done[static_cast<size_t>(i)] = 1;
    });
    CHECK_EQ(std::count(done.begin(), done.end(), 1), 8);
  }
}

TEST("threads: a loop inside a body runs there, and failures come out as from any loop") {
  ThreadPool pool(3);
  std::vector<std::vector<int>> cells(20, std::vector<int>(30));
  pool.parallel_for(20, [&](int64_t i) {
    auto& row = cells[static_cast<size_t>(i)];
    pool.parallel_for(30, [&](int64_t j) { row[static_cast<size_t>(j)] = 1; });
  });
  for (const auto& row : cells) CHECK_EQ(std::count(row.begin(), row.end(), 1), 30);
  std::string message;
  try {
    pool.parallel_for(20, [&](int64_t i) {
      pool.parallel_for(30, [&](int64_t j) {
        if (i >= 5 && j >= 7) throw std::runtime_error(std::to_string(i) + ", " + std::to_string(j));
      });
    });
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK_EQ(message, std::string("5, 7"));
}

TEST("threads: several threads may use one pool at once") {
  ThreadPool pool(2);
  std::vector<int64_t> wrong(4);
  std::vector<std::thread> users;
  for (size_t user = 0; user < wrong.size(); ++user)
    users.emplace_back([&pool, &count = wrong[user]] {
      std::vector<int64_t> cells(13);
      for (int64_t round = 1; round <= 300; ++round) count += run_round(pool, cells, round) != 13;
    });
  for (std::thread& user : users) user.join();
  CHECK_EQ(wrong, std::vector<int64_t>(4));
}

TEST("threads: a failure runs the other iterations, reaches the caller, and leaves nothing behind") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 100; ++round) {
      std::vector<int> done(40);
      int64_t first = -1;
      try {
        pool.parallel_for(40, [&](int64_t i) {
          done[static_cast<size_t>(i)] = 1;
          if (i >= 11) throw i;
        });
      } catch (const int64_t index) {
        first = index;
      }
      CHECK_EQ(first, 11);
      CHECK_EQ(std::count(done.begin(), done.end(), 1), 40);
      std::vector<int64_t> cells(40);
      CHECK_EQ(run_round(pool, cells, 7), 40);
    }
  }
}

TEST("threads: a pool ends with its workers asleep, looking, or never started") {
  for (int i = 0; i < 60; ++i) {
    ThreadPool pool(4);
    std::vector<int64_t> cells(4);
    for (int64_t round = 1; round <= i % 3; ++round) CHECK_EQ(run_round(pool, cells, round), 4);
    if (i % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
  }
}

}  // namespace quantaria
