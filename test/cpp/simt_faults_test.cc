#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "check.h"
#include "simt/emulator/global_memory.h"
#include "simt_test.h"

// Kernels that are right pass in every order; each kind of mistake, planted in one of them, is caught.
namespace {

using namespace quantaria;
using namespace quantaria::test;

void check_right(const std::vector<simt::emulator::Options>& orders, const std::function<bool()>& body) {
  for (const std::string& text : outcomes(orders, body)) CHECK_EQ(text, std::string("right"));
}

/// Caught with this text in at least one order.
void check_caught(const std::vector<simt::emulator::Options>& orders, const std::function<bool()>& body,
                  const std::string& part, int line = __builtin_LINE()) {
  const std::vector<std::string> all = outcomes(orders, body);
  if (!any_contains(all, part))
    report(__FILE__, line, "outcomes " + show(all) + ", one with '" + part + "' expected");
}

enum class Bug { none, first, second };

// ---- The sum of 1024 floats by 256 threads, through shared memory.
struct Sums {
  float of_warp[8];
  float total;
};

template <Bug bug>
__global__ void block_sum(const float* x, float* y) {
  auto& sums = simt::shared<Sums>();
  float sum = 0;
  for (unsigned i = threadIdx.x; i < 1024; i += blockDim.x) sum += x[i];
  for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
  if (threadIdx.x % 32 == 0) sums.of_warp[threadIdx.x / 32] = sum;
  if (bug != Bug::first) __syncthreads();
  if (threadIdx.x < 8) {
    float all = sums.of_warp[threadIdx.x];
    for (int o = 4; o > 0; o /= 2) all += __shfl_xor_sync(0xffu, all, o);
    if (threadIdx.x == 0) sums.total = all;
  }
  if (bug != Bug::second) __syncthreads();
  y[blockIdx.x * blockDim.x + threadIdx.x] = sums.total;
}

template <Bug bug>
bool block_sum_is_right() {
  std::vector<float> x(1024);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) - 8;
  const float expected = std::accumulate(x.begin(), x.end(), 0.0f);
  std::vector<float> y(512);
  simt::launch(block_sum<bug>, dim3(2), dim3(256), sizeof(Sums), {}, x.data(), y.data());
  return std::all_of(y.begin(), y.end(), [&](float value) { return value == expected; });
}

TEST("simt: a block's sum is right in every order, and needs both of its barriers") {
  const std::string symptom = kThreadSanitizer ? "data race" : "wrong";
  check_right(every_order(2), block_sum_is_right<Bug::none>);
  check_caught(every_order(1), block_sum_is_right<Bug::first>, symptom);
  check_caught(every_order(1), block_sum_is_right<Bug::second>, symptom);
}

TEST("simt: dropping any barrier of the block's sum, one at a time, is noticed") {
  if (kThreadSanitizer) return;  // lists the places in this process
  const std::vector<SyncSite> sites =
      drop_each_sync(every_order(2), block_sum_is_right<Bug::none>, Orders::all);
  CHECK_EQ(sites.size(), size_t{2});
  for (const SyncSite& site : sites) CHECK(site.noticed > site.runs / 2);
}

// ---- Lanes of one warp exchange values through shared memory.
struct Exchange {
  int value[32];
};

template <Bug bug>
__global__ void warp_exchange(int* y) {
  auto& exchange = simt::shared<Exchange>();
  const int lane = static_cast<int>(threadIdx.x);
  exchange.value[lane] = lane * lane;
  if (bug == Bug::none) __syncwarp();
  if (bug == Bug::second) __shfl_sync(~0u, lane, 0);  // brings the lanes together, but orders no memory
  y[lane] = exchange.value[31 - lane];
}

template <Bug bug>
bool warp_exchange_is_right() {
  std::vector<int> y(32);
  simt::launch(warp_exchange<bug>, dim3(1), dim3(32), sizeof(Exchange), {}, y.data());
  for (int lane = 0; lane < 32; ++lane)
    if (y[static_cast<size_t>(lane)] != (31 - lane) * (31 - lane)) return false;
  return true;
}

TEST("simt: an exchange within a warp needs __syncwarp") {
  check_right(every_order(2), warp_exchange_is_right<Bug::none>);
  check_caught(every_order(1), warp_exchange_is_right<Bug::first>, kThreadSanitizer ? "data race" : "wrong");
  // A shuffle in its place is a race that only the thread sanitizer knows of.
  if (kThreadSanitizer) check_caught(every_order(1), warp_exchange_is_right<Bug::second>, "data race");
}

// ---- Blocks add to one place, and blocks take turns by a lock.
template <Bug bug>
__global__ void accumulate(int* y) {
  if (bug == Bug::none)
    atomicAdd(&y[threadIdx.x], 1);
  else
    y[threadIdx.x] += 1;
}

template <Bug bug>
bool accumulate_is_right() {
  std::vector<int> y(64);
  simt::launch(accumulate<bug>, dim3(8), dim3(64), 0, {}, y.data());
  return std::all_of(y.begin(), y.end(), [](int value) { return value == 8; });
}

TEST("simt: sums over blocks need atomics") {
  check_right(every_order(2, 4), accumulate_is_right<Bug::none>);
  if (kThreadSanitizer) check_caught(every_order(1, 4), accumulate_is_right<Bug::first>, "data race");
}

template <Bug bug>
__global__ void take_turns(int* lock, float* y) {
  if (threadIdx.x == 0) {
    // The bug is to look without acquiring; the loop itself must let others run all the same.
    while (bug == Bug::none ? simt::load_acquire(lock) != static_cast<int>(blockIdx.x)
                            : __atomic_load_n(lock, __ATOMIC_RELAXED) != static_cast<int>(blockIdx.x))
      if (bug == Bug::first) __shfl_sync(1u, 0, 0), simt::emulator::yield();
  }
  __syncthreads();
  y[threadIdx.x] = y[threadIdx.x] * 2 + static_cast<float>(blockIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) simt::release_add(lock, 1);
}

template <Bug bug>
bool take_turns_is_right() {
  std::vector<float> y(64, 1.0f);
  int lock = 0;
  simt::launch(take_turns<bug>, dim3(8), dim3(64), 0, {}, &lock, y.data());
  float expected = 1;
  for (int block = 0; block < 8; ++block) expected = expected * 2 + static_cast<float>(block);
  return std::all_of(y.begin(), y.end(), [&](float value) { return value == expected; });
}

TEST("simt: blocks that take turns by a lock need acquire, and room for all that wait") {
  check_right(every_order(2, 8), take_turns_is_right<Bug::none>);
  if (kThreadSanitizer) check_caught(every_order(1, 8), take_turns_is_right<Bug::first>, "data race");
  std::vector<simt::emulator::Options> alone = every_order(2, 1);
  alone.erase(
      alone.begin(),
      alone.begin() + static_cast<int64_t>(alone.size() /
                                           3));  // in order, one after the other, there is nobody to wait for
  for (auto& options : alone) options.switch_budget = 20'000;
  if (!kThreadSanitizer) check_caught(alone, take_turns_is_right<Bug::none>, "does not end");
}

template <Bug bug>
__global__ void add_up_by_the_last(unsigned* counter, int* parts, int* sum) {
  parts[blockIdx.x * 64 + threadIdx.x] = static_cast<int>(blockIdx.x * threadIdx.x);
  if (bug != Bug::first) __syncthreads();
  if (threadIdx.x != 0) return;
  // The second bug is to count without acquiring what the others have written.
  const bool last = bug == Bug::second ? __atomic_add_fetch(counter, 1u, __ATOMIC_RELAXED) == 8
                                       : simt::last_to_arrive(counter, 8);
  if (!last) return;
  for (int i = 0; i < 8 * 64; ++i) *sum += parts[i];
}

template <Bug bug>
bool add_up_by_the_last_is_right() {
  unsigned counter = 0;
  std::vector<int> parts(8 * 64);
  int sum = 0;
  simt::launch(add_up_by_the_last<bug>, dim3(8), dim3(64), 0, {}, &counter, parts.data(), &sum);
  return sum == 28 * 2016 && (bug == Bug::second || counter == 0);
}

TEST("simt: the last block to arrive sees what all have written, and nobody waits") {
  for (const int resident : {1, 3, 8})
    check_right(every_order(2, resident), add_up_by_the_last_is_right<Bug::none>);
  check_caught(every_order(2, 8), add_up_by_the_last_is_right<Bug::first>,
               kThreadSanitizer ? "data race" : "wrong");
  if (kThreadSanitizer)
    check_caught(every_order(1, 8), add_up_by_the_last_is_right<Bug::second>, "data race");
}

bool counter_begins_above() {
  unsigned counter = 9;
  std::vector<int> parts(8 * 64);
  int sum = 0;
  simt::launch(add_up_by_the_last<Bug::none>, dim3(8), dim3(64), 0, {}, &counter, parts.data(), &sum);
  return true;
}

TEST("simt: a counter that does not start at 0 is a fault") {
  check_caught(every_order(1), counter_begins_above, "more have arrived than were expected");
}

// ---- A producer warp fills two buffers for a consumer warp, with named barriers.
struct Buffers {
  float value[2][32];
};

template <Bug bug>
__global__ void produce_and_consume(const float* x, float* y, int rounds) {
  auto& buffers = simt::shared<Buffers>();
  const unsigned lane = threadIdx.x % 32;
  const auto empty = [](int i) { i % 2 == 0 ? simt::barrier_wait<3>(64) : simt::barrier_wait<4>(64); };
  const auto emptied = [](int i) { i % 2 == 0 ? simt::barrier_arrive<3>(64) : simt::barrier_arrive<4>(64); };
  const auto full = [](int i) { i % 2 == 0 ? simt::barrier_wait<1>(64) : simt::barrier_wait<2>(64); };
  const auto filled = [](int i) { i % 2 == 0 ? simt::barrier_arrive<1>(64) : simt::barrier_arrive<2>(64); };
  if (threadIdx.x < 32) {
    for (int i = 0; i < rounds; ++i) {
      if (i >= 2 && bug == Bug::none) empty(i);
      buffers.value[i % 2][lane] = x[i * 32 + static_cast<int>(lane)];
      filled(i);
    }
  } else {
    float sum = 0;
    for (int i = 0; i < rounds; ++i) {
      full(i);
      sum += buffers.value[i % 2][31 - lane];
      if (i + 2 < rounds && bug == Bug::none) emptied(i);
    }
    y[lane] = sum;
  }
}

template <Bug bug>
bool produce_and_consume_is_right() {
  constexpr int kRounds = 8;
  std::vector<float> x(kRounds * 32);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  std::vector<float> y(32);
  simt::launch(produce_and_consume<bug>, dim3(1), dim3(64), sizeof(Buffers), {}, x.data(), y.data(), kRounds);
  for (size_t lane = 0; lane < 32; ++lane) {
    float sum = 0;
    for (size_t i = 0; i < kRounds; ++i) sum += x[i * 32 + 31 - lane];
    if (y[lane] != sum) return false;
  }
  return true;
}

TEST("simt: a producer that does not wait for empty buffers is caught") {
  check_right(every_order(3), produce_and_consume_is_right<Bug::none>);
  check_caught(every_order(2), produce_and_consume_is_right<Bug::first>, kThreadSanitizer ? "data race" : "");
}

// ---- A pipeline of cp.async with three stages: y = x, each piece read by another thread than fetched it.
struct Stages {
  alignas(16) float piece[3][256];
};

enum class Pipeline { right, no_barrier, refill_too_early, wait_too_little, no_last_wait, one_too_far };

template <Pipeline bug>
__global__ void __launch_bounds__(64) stream(const float* x, float* y, int pieces) {
  auto& stages = simt::shared<Stages>();
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int i) {
    const bool wanted = i < pieces + (bug == Pipeline::one_too_far ? 1 : 0);
    if (i < pieces + 2)
      simt::cp_async<16>(&stages.piece[i % 3][t * 4], x + (wanted ? i : 0) * 256 + t * 4, wanted);
    simt::cp_async_commit();
  };
  fetch(0);
  fetch(1);
  for (int i = 0; i < pieces; ++i) {
    if (bug == Pipeline::wait_too_little)
      simt::cp_async_wait<2>();
    else
      simt::cp_async_wait<1>();
    if (bug == Pipeline::refill_too_early) fetch(i + 2);
    if (bug != Pipeline::no_barrier)
      __syncthreads();  // piece i is there for all, and all have left piece i - 1
    if (bug != Pipeline::refill_too_early) fetch(i + 2);
    for (int j = 0; j < 4; ++j) y[i * 256 + j * 64 + t] = stages.piece[i % 3][j * 64 + 63 - t];
  }
  if (bug != Pipeline::no_last_wait) simt::cp_async_wait<0>();
}

template <Pipeline bug>
bool stream_is_right() {
  constexpr int kPieces = 7;
  const auto memory = std::make_shared<simt::emulator::GlobalMemory>();
  constexpr int64_t kBytes = kPieces * 256 * sizeof(float);
  const auto x_block = memory->allocate(kBytes);
  const auto y_block = memory->allocate(kBytes);
  auto* const x = reinterpret_cast<float*>(x_block.get());
  const auto* const y = reinterpret_cast<const float*>(y_block.get());
  for (int i = 0; i < kPieces * 256; ++i) x[i] = static_cast<float>(i);
  simt::emulator::options().global = memory.get();
  simt::launch(stream<bug>, dim3(1), dim3(64), sizeof(Stages), {}, x, reinterpret_cast<float*>(y_block.get()),
               kPieces);
  for (int i = 0; i < kPieces * 4; ++i)
    for (int t = 0; t < 64; ++t)
      if (y[i * 64 + t] != x[i * 64 + 63 - t]) return false;
  return true;
}

/// What a read of bytes that have not arrived looks like.
const char* unarrived() {
  return kAddressSanitizer ? "use-after-poison" : kThreadSanitizer ? "data race" : "wrong";
}

TEST("simt: a pipeline of cp.async is right in every order, and each planted mistake is caught") {
  check_right(every_order(2), stream_is_right<Pipeline::right>);
  // Nothing brings the threads together then: the first one reads places that nobody has begun to fill.
  check_caught(every_order(2), stream_is_right<Pipeline::no_barrier>,
               kThreadSanitizer ? "data race" : "wrong");
  check_caught(every_order(4), stream_is_right<Pipeline::refill_too_early>, unarrived());
  check_caught(every_order(1), stream_is_right<Pipeline::wait_too_little>, unarrived());
  check_caught(every_order(1), stream_is_right<Pipeline::no_last_wait>, "cp.async in flight");
  check_caught(every_order(1), stream_is_right<Pipeline::one_too_far>,
               "cp.async source outside of global memory, simt_faults_test.cc:");
}

TEST("simt: dropping any wait or barrier of the pipeline, one at a time, is noticed") {
  if (kThreadSanitizer) return;  // lists the places in this process
  const std::vector<SyncSite> sites =
      drop_each_sync(every_order(2), stream_is_right<Pipeline::right>, Orders::all);
  CHECK_EQ(sites.size(), size_t{3});
  for (const SyncSite& site : sites) CHECK(site.noticed > 0);
}

// ---- Lanes and threads that part ways.
enum class Parting { right, mask_too_wide, mask_without_me, two_barriers, early_end, two_shuffles };

template <Parting bug>
__global__ void part(int* y) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = lane;
  if (bug == Parting::early_end && lane >= 32) return;
  if (bug == Parting::two_barriers && lane % 32 < 16)
    __syncthreads();
  else
    __syncthreads();
  if (lane < 16) {
    value = bug == Parting::mask_too_wide     ? __shfl_xor_sync(~0u, lane, 1)
            : bug == Parting::mask_without_me ? __shfl_xor_sync(0xffff0000u, lane, 1)
                                              : __shfl_xor_sync(0xffffu, lane, 1);
  }
  if (bug == Parting::two_shuffles)
    value = lane % 2 ? __shfl_sync(~0u, value, 0) : __shfl_sync(~0u, value, 1);
  y[lane] = value;
}

template <Parting bug>
bool part_is_right() {
  std::vector<int> y(64);
  simt::launch(part<bug>, dim3(1), dim3(64), 0, {}, y.data());
  for (int lane = 0; lane < 64; ++lane)
    if (y[static_cast<size_t>(lane)] != (lane < 16 ? lane ^ 1 : lane)) return false;
  return true;
}

TEST("simt: threads that part ways before a collective are a fault that names both places") {
  check_right(every_order(1), part_is_right<Parting::right>);
  check_caught(every_order(1), part_is_right<Parting::mask_too_wide>, "deadlock: [");
  check_caught(every_order(1), part_is_right<Parting::mask_without_me>, "mask lacks the calling lane");
  check_caught(every_order(1), part_is_right<Parting::two_barriers>,
               "a divergent __syncthreads: others are at");
  check_caught(every_order(1), part_is_right<Parting::early_end>,
               "[32 threads at barrier 0, simt_faults_test.cc:");
  check_caught(every_order(1), part_is_right<Parting::early_end>, "[32 threads ended]");
  check_caught(every_order(1), part_is_right<Parting::two_shuffles>, "a divergent warp collective");
}

// ---- Places that are not there.
struct Small {
  float value[20];
};

enum class Access {
  right,
  past_shared,
  past_global,
  misaligned_load,
  load_outside,
  misaligned_matrix,
  matrix_outside
};

template <Access bug>
__global__ void touch(const float* x, float* y) {
  auto& small = simt::shared<Small>();
  float* const value = small.value;
  const int t = static_cast<int>(threadIdx.x);
  if (bug == Access::past_shared || t < 20) value[t] = 1;
  y[bug == Access::past_global ? t + 1 : t] = x[t];
  if (bug == Access::misaligned_load) y[t] = simt::load(reinterpret_cast<const float4*>(x + t)).x;
  if (bug == Access::load_outside) y[t] = simt::load(reinterpret_cast<const float4*>(x + t * 4)).x;
  uint32_t r[1];
  if (bug == Access::misaligned_matrix) simt::ldmatrix<1>(r, small.value + 1);
  if (bug == Access::matrix_outside) simt::ldmatrix<1>(r, small.value + 20);
}

template <Access bug>
bool touch_is_right() {
  const auto memory = std::make_shared<simt::emulator::GlobalMemory>();
  const auto x = memory->allocate(32 * sizeof(float));
  const auto y = memory->allocate(32 * sizeof(float));
  for (int i = 0; i < 32; ++i) reinterpret_cast<float*>(x.get())[i] = 1;
  simt::emulator::options().global = memory.get();
  simt::launch(touch<bug>, dim3(1), dim3(32), sizeof(Small), {}, reinterpret_cast<const float*>(x.get()),
               reinterpret_cast<float*>(y.get()));
  memory->require_intact();
  return std::memcmp(x.get(), y.get(), 32 * sizeof(float)) == 0;
}

TEST("simt: accesses outside of memory and off their alignment are caught") {
  const auto once = [] { return std::vector<simt::emulator::Options>(1); }();
  check_right(once, touch_is_right<Access::right>);
  check_caught(once, touch_is_right<Access::past_shared>,
               kAddressSanitizer ? "use-after-poison" : "past the end of its 80 bytes of shared memory");
  check_caught(once, touch_is_right<Access::past_global>,
               kAddressSanitizer ? "use-after-poison" : "beside a block of 128 bytes of global memory");
  check_caught(once, touch_is_right<Access::misaligned_load>,
               "misaligned load: 4 past a multiple of 16, simt_faults_test.cc:");
  check_caught(once, touch_is_right<Access::load_outside>,
               "thread (8,0,0): load outside of global memory, simt_faults_test.cc:");
  check_caught(once, touch_is_right<Access::misaligned_matrix>, "misaligned ldmatrix");
  check_caught(once, touch_is_right<Access::matrix_outside>, "ldmatrix outside of shared memory");
}

__global__ void nothing() {}

TEST("simt: launches that a GPU refuses are faults, and the next launch works") {
  using simt::emulator::Fault;
  CHECK_THROWS(Fault, (simt::launch(nothing, dim3(1), dim3(1056), 0, {}), 0));
  CHECK_THROWS(Fault, (simt::launch(nothing, dim3(1), dim3(40), 0, {}), 0));
  CHECK_THROWS(Fault, (simt::launch(nothing, dim3(0), dim3(32), 0, {}), 0));
  CHECK_THROWS(Fault, (simt::launch(nothing, dim3(1, 65536), dim3(32), 0, {}), 0));
  CHECK_THROWS(Fault, (simt::launch(nothing, dim3(1), dim3(32), (163u << 10) + 1, {}), 0));
  CHECK_THROWS(Fault, (simt::launch(touch<Access::right>, dim3(1), dim3(32), 16, {}, nullptr, nullptr), 0));
  CHECK_THROWS(Fault, (part_is_right<Parting::early_end>(), 0));
  CHECK(part_is_right<Parting::right>());
}

__global__ void read_unwritten(float* y) { y[threadIdx.x] = simt::shared<Small>().value[threadIdx.x % 20]; }

TEST("simt: shared and global memory that was never written reads as NaN") {
  const auto memory = std::make_shared<simt::emulator::GlobalMemory>();
  const auto block = memory->allocate(64 * sizeof(float));
  auto* const y = reinterpret_cast<float*>(block.get());
  simt::launch(read_unwritten, dim3(1), dim3(32), sizeof(Small), {}, y);
  for (int i = 0; i < 64; ++i) CHECK(y[i] != y[i]);
}

}  // namespace
