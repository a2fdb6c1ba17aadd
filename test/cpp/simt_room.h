#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "simt/emulator/global_memory.h"
#include "simt_test.h"

namespace quantaria::test {

/// Memory of an emulated device for one test: poisoned blocks, given back together.
class DeviceRoom {
 public:
  template <class T>
  T* take(int64_t count) {
    blocks_.push_back(memory_->allocate(std::max<int64_t>(1, count) * static_cast<int64_t>(sizeof(T))));
    return reinterpret_cast<T*>(blocks_.back().get());
  }
  template <class T>
  T* copy(const std::vector<T>& values) {
    T* const to = take<T>(static_cast<int64_t>(values.size()));
    std::copy(values.begin(), values.end(), to);
    return to;
  }
  std::byte* zeros(int64_t bytes) {
    auto* const to = take<std::byte>(bytes);
    std::memset(to, 0, static_cast<size_t>(bytes));
    return to;
  }

  /// Launches of `body`, whose global accesses are held against the blocks, and what they left around them.
  void run(const std::function<void()>& body) {
    simt::emulator::options().global = memory_.get();
    body();
    simt::emulator::options().global = nullptr;
    memory_->require_intact();
  }

 private:
  std::shared_ptr<simt::emulator::GlobalMemory> memory_ = std::make_shared<simt::emulator::GlobalMemory>();
  std::vector<std::shared_ptr<std::byte>> blocks_;
};

/// Whether `count` elements are the same bits.
template <class T>
bool same_bits(const T* found, const std::vector<T>& expected) {
  return expected.empty() || std::memcmp(found, expected.data(), expected.size() * sizeof(T)) == 0;
}

}  // namespace quantaria::test
