#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/allocator.h"
#include "core/device.h"
#include "core/executor.h"
#include "core/shape.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "cpu/device.h"

namespace quantaria {
namespace {

constexpr int64_t kMaxCount = int64_t{1} << 53;

/// The message of the Error that `body` throws with this code; empty if it does not.
template <class Body>
std::string message_of(ErrorCode code, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() == code) return error.what();
  }
  return "";
}

Tensor counting(Shape shape) {
  Tensor tensor = empty(cpu::device(), DType::int32, std::move(shape));
  for (int64_t i = 0; i < tensor.elements(); ++i) tensor.data_as<int32_t>()[i] = static_cast<int32_t>(i);
  return tensor;
}

/// The values of a view, read element by element by its strides.
void collect(const Tensor& tensor, std::vector<int32_t>& to) {
  if (tensor.shape.empty()) return to.push_back(*tensor.data_as<int32_t>());
  for (int64_t i = 0; i < tensor.shape[0]; ++i) collect(select(tensor, 0, i), to);
}
std::vector<int32_t> values(const Tensor& tensor) {
  std::vector<int32_t> result;
  collect(tensor, result);
  return result;
}

void drain() {
  std::atomic<bool> done{false};
  cpu::device().post([&] {
    done = true;
    done.notify_all();
  });
  done.wait(false);
}

}  // namespace

TEST("core: element counts are exact up to 2^53 and refused beyond, zeros among them or not") {
  CHECK_EQ(element_count({}), 1);
  CHECK_EQ(element_count({3, 0, 5}), 0);
  CHECK_EQ(element_count({kMaxCount, 1}), kMaxCount);
  CHECK_THROWS(Error, element_count({kMaxCount, 2}));
  CHECK_THROWS(Error,
               element_count({std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max()}));
  CHECK_THROWS(Error, element_count({kMaxCount, kMaxCount, 0}));
  CHECK_THROWS(Error, element_count({2, -1}));
}

TEST("core: a slice picks every step-th element from start to end") {
  const Tensor tensor = counting({2, 7});
  CHECK_EQ(values(slice(tensor, 1, 1, 6, 2)), (std::vector<int32_t>{1, 3, 5, 8, 10, 12}));
  CHECK_EQ(values(slice(tensor, 0, 1, 2)), (std::vector<int32_t>{7, 8, 9, 10, 11, 12, 13}));
  CHECK_EQ(slice(tensor, 1, 3, 3).elements(), 0);
  for (const auto& [dim, start, end, step] : std::vector<std::array<int64_t, 4>>{{2, 0, 1, 1},
                                                                                 {-1, 0, 1, 1},
                                                                                 {0, 0, 3, 1},
                                                                                 {0, -1, 1, 1},
                                                                                 {1, 2, 1, 1},
                                                                                 {1, 0, 1, 0},
                                                                                 {1, 0, 1, -1}})
    CHECK(!message_of(ErrorCode::shape, [&] { slice(tensor, dim, start, end, step); }).empty());
}

TEST("core: no step overflows a stride, of whatever size the step and the dimensions are") {
  Tensor tensor = empty(cpu::device(), DType::int32, {4, kMaxCount / 4, 0});
  for (int i = 0; i < 10; ++i) tensor = slice(tensor, 0, 0, tensor.shape[0], kMaxCount);
  CHECK_EQ(tensor.shape[0], 1);
  CHECK_EQ(slice(counting({5}), 0, 0, 5, std::numeric_limits<int64_t>::max()).shape[0], 1);
}

TEST("core: transposing, selecting and slicing in any order are views of the same elements") {
  const Tensor tensor = counting({2, 3, 4});
  const Tensor turned = transposed(tensor);
  CHECK_EQ(turned.shape, (Shape{2, 4, 3}));
  CHECK_EQ(values(select(turned, 0, 1)),
           (std::vector<int32_t>{12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23}));
  CHECK_EQ(values(slice(select(turned, 0, 0), 0, 1, 3)), (std::vector<int32_t>{1, 5, 9, 2, 6, 10}));
  CHECK(!turned.contiguous());
  CHECK(transposed(turned).contiguous());
  CHECK(slice(turned, 1, 2, 2).contiguous());
  CHECK_THROWS(Error, reshaped(turned, {24}));
  CHECK_THROWS(Error, transposed(counting({3})));
  CHECK_THROWS(Error, select(tensor, 0, 2));
}

TEST("core: a bitcast keeps the bytes and refuses an offset that the new type does not allow") {
  const Tensor tensor = counting({4});
  const Tensor bytes = bitcast(tensor, DType::uint8, {16});
  CHECK_EQ(bytes.data(), tensor.data());
  CHECK_EQ(bitcast(slice(bytes, 0, 4, 12), DType::int32, {2}).data(), tensor.data() + 4);
  CHECK_THROWS(Error, bitcast(slice(bytes, 0, 1, 5), DType::int32, {1}));
  CHECK_THROWS(Error, bitcast(tensor, DType::int64, {3}));
}

TEST("core: a loop runs every index once, on any number of threads, and rethrows the lowest failure") {
  for (const int threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (const auto& n : runs) CHECK_EQ(n.load(), 1);
    }
    const auto failing = [&] {
      pool.parallel_for(100, [](int64_t i) {
        if (i % 10 == 7) fail(ErrorCode::argument, "index ", i);
      });
    };
    for (int i = 0; i < 20; ++i) CHECK_EQ(message_of(ErrorCode::argument, failing), std::string("index 7"));
  }
}

TEST("core: an executor runs its tasks in order and finishes them before it goes") {
  std::vector<int> order;
  {
    Executor executor;
    for (int i = 0; i < 1000; ++i) executor.post([&order, i] { order.push_back(i); });
  }
  CHECK_EQ(order.size(), size_t{1000});
  for (int i = 0; i < 1000; ++i) CHECK_EQ(order[static_cast<size_t>(i)], i);
}

TEST("core: a failure passes to what depends on it, is told once, and leaves the rest alone") {
  cpu::Device& device = cpu::device();
  const Tensor a = counting({2}), b = counting({2}), c = counting({2}), other = counting({2});
  bool ran = false;
  device.enqueue({a}, {b}, [] { fail(ErrorCode::argument, "broken"); });
  device.enqueue({b}, {c}, [&ran] { ran = true; });
  device.enqueue({a}, {other}, [] {});
  drain();
  CHECK(!ran);
  CHECK(b.storage->failure() != nullptr && b.storage->failure() == c.storage->failure());
  CHECK(other.storage->failure() == nullptr);
  CHECK(device.take_failure() == b.storage->failure());
  CHECK(device.take_failure() == nullptr);
}

TEST("core: blocks are 64-byte aligned, counted while they live, and handed out again") {
  const auto allocator = std::make_shared<HostAllocator>();
  for (const int64_t bytes : {0, 1, 64, 65, 1000, 100'000}) {
    std::byte* first = nullptr;
    {
      const auto block = allocator->allocate(bytes);
      first = block.get();
      std::memset(first, 1, static_cast<size_t>(bytes));
      CHECK_EQ(reinterpret_cast<uintptr_t>(first) % 64, uintptr_t{0});
      CHECK_EQ(allocator->counters().live_blocks, 1);
      CHECK(allocator->counters().live_bytes >= bytes);
      const int64_t lines = std::max<int64_t>(1, (bytes + 63) / 64) * 64;
      CHECK(allocator->counters().live_bytes <= std::max<int64_t>(lines, bytes + bytes / 4));
    }
    CHECK_EQ(allocator->counters().live_bytes, 0);
    CHECK(allocator->allocate(bytes).get() == first);
  }
}

TEST("core: blocks of every size are whole, apart from each other, and fresh ones are given back") {
  const auto allocator = std::make_shared<HostAllocator>();
  // Some from the heap, some out of a slab (two slabs), some on pages of their own.
  std::vector<std::shared_ptr<std::byte>> blocks;
  std::vector<int64_t> sizes;
  for (int i = 0; i < 12; ++i)
    for (const int64_t bytes : {1000, 65'536, 70'001, 3'000'000, 9'000'000}) sizes.push_back(bytes + i);
  sizes.push_back(20'000'000);
  for (size_t i = 0; i < sizes.size(); ++i) {
    blocks.push_back(allocator->allocate(sizes[i]));
    std::memset(blocks.back().get(), static_cast<int>(i), static_cast<size_t>(sizes[i]));
  }
  for (size_t i = 0; i < sizes.size(); ++i)
    for (const int64_t at : {int64_t{0}, sizes[i] / 2, sizes[i] - 1})
      CHECK_EQ(static_cast<int>(blocks[i].get()[at]), static_cast<int>(i));
}

TEST("core: of more freed memory than is kept, what was used last stays") {
  const auto allocator = std::make_shared<HostAllocator>();
  const int64_t limit = HostAllocator::kMaxCachedBytes;
  {
    std::vector<std::shared_ptr<std::byte>> old;
    for (int i = 0; i < 40; ++i) old.push_back(allocator->allocate(limit / 32));  // none of it is touched
  }
  CHECK(allocator->counters().cached_bytes <= limit);
  CHECK(allocator->counters().cached_bytes > limit / 2);
  const std::byte* const last = allocator->allocate(1'000'000).get();
  CHECK(allocator->counters().cached_bytes <= limit);
  CHECK(allocator->allocate(1'000'000).get() == last);
  // Blocks whose memory was given back are good again.
  std::vector<std::shared_ptr<std::byte>> again;
  for (int i = 0; i < 40; ++i) {
    again.push_back(allocator->allocate(limit / 32));
    again.back().get()[i] = std::byte{1};
  }
  CHECK_EQ(allocator->counters().live_blocks, 40);
}

TEST("core: more than the machine has is refused, also in parts that nobody has touched") {
  const auto allocator = std::make_shared<HostAllocator>();
  CHECK(!message_of(ErrorCode::out_of_memory, [&] { allocator->allocate(10 * physical_memory()); }).empty());
  CHECK(!message_of(ErrorCode::out_of_memory, [&] { allocator->allocate(int64_t{1} << 60); }).empty());
  CHECK(available_memory() <= physical_memory());
  CHECK_EQ(allocator->counters().live_blocks, 0);
}

}  // namespace quantaria
