#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <utility>

#include "core/attempt.h"
#include "simt/simt.h"
#include "test/golden/collectives.h"

namespace quantaria::golden {
namespace {

constexpr int kLanes = 32;

struct Tiles {
  alignas(16) uint32_t words[256];
};

__device__ uint32_t magnitude(float x) { return simt::bits<uint32_t>(x < 0 ? -x : x); }

/// Each lane: `per_lane` words of input, and as many of output as its kernel writes.
template <class T>
__global__ void mma(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
  float sums[4] = {};
  for (unsigned i = 0; i < 4; ++i) a[i] = simt::load(in + lane * 10 + i);
  for (unsigned i = 0; i < 2; ++i) b[i] = simt::load(in + lane * 10 + 4 + i);
  for (unsigned i = 0; i < 4; ++i) d[i] = simt::bits<float>(simt::load(in + lane * 10 + 6 + i));
  // The same product of magnitudes: signs are the upper bits of the halves.
  uint32_t a_plain[4];
  uint32_t b_plain[2];
  for (unsigned i = 0; i < 4; ++i) a_plain[i] = a[i] & 0x7fff7fffu;
  for (unsigned i = 0; i < 2; ++i) b_plain[i] = b[i] & 0x7fff7fffu;
  for (unsigned i = 0; i < 4; ++i) sums[i] = simt::bits<float>(magnitude(d[i]));
  simt::mma_m16n8k16<T>(d, a, b);
  simt::mma_m16n8k16<T>(sums, a_plain, b_plain);
  for (unsigned i = 0; i < 4; ++i) {
    simt::store(out + lane * 8 + 2 * i, simt::bits<uint32_t>(d[i]));
    simt::store(out + lane * 8 + 2 * i + 1, simt::bits<uint32_t>(sums[i]));
  }
}

__global__ void mma_bytes(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  uint32_t a[4];
  uint32_t b[2];
  int32_t d[4];
  for (unsigned i = 0; i < 4; ++i) a[i] = simt::load(in + lane * 10 + i);
  for (unsigned i = 0; i < 2; ++i) b[i] = simt::load(in + lane * 10 + 4 + i);
  for (unsigned i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(simt::load(in + lane * 10 + 6 + i));
  simt::mma_m16n8k32_s8(d, a, b);
  for (unsigned i = 0; i < 4; ++i) simt::store(out + lane * 4 + i, static_cast<uint32_t>(d[i]));
}

/// Rows in an order that is not theirs, so that it matters which lane names which.
template <int N, bool Transposed>
__global__ void matrices(const uint32_t* in, uint32_t* out) {
  auto& tiles = simt::shared<Tiles>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += kLanes) tiles.words[i] = simt::load(in + i);
  __syncthreads();
  uint32_t r[N];
  simt::ldmatrix<N, Transposed>(r, tiles.words + (lane * 5 % 32) * 4);
  for (unsigned i = 0; i < N; ++i) simt::store(out + lane * N + i, r[i]);
}

template <int Bytes>
__global__ void copies(const uint32_t* in, uint32_t* out) {
  auto& tiles = simt::shared<Tiles>();
  const unsigned lane = threadIdx.x;
  constexpr unsigned kWords = Bytes / 4;
  for (unsigned i = 0; i < 4; ++i) tiles.words[lane * 4 + i] = 0xdeadbeefu;
  __syncthreads();
  simt::cp_async<Bytes>(tiles.words + lane * 4, in + (31 - lane) * kWords, lane % 3 != 1);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  __syncthreads();
  for (unsigned i = 0; i < 4; ++i) simt::store(out + lane * 4 + i, tiles.words[lane * 4 + i]);
}

__global__ void shuffles(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  const uint32_t x = simt::load(in + lane);
  const uint32_t results[]{__shfl_sync(~0u, x, static_cast<int>(x % 32)),
                           __shfl_sync(~0u, x, 5, 8),
                           __shfl_xor_sync(~0u, x, 16),
                           __shfl_xor_sync(~0u, x, 5, 8),
                           __shfl_xor_sync(~0u, x, 9, 8),
                           __shfl_up_sync(~0u, x, 3),
                           __shfl_up_sync(~0u, x, 2, 4),
                           __shfl_down_sync(~0u, x, 7),
                           __shfl_down_sync(~0u, x, 5, 16)};
  for (unsigned i = 0; i < 9; ++i) simt::store(out + lane * 9 + i, results[i]);
}

__global__ void votes(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  const uint32_t x = simt::load(in + lane);
  const uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const uint32_t results[]{__ballot_sync(~0u, x & 1), __ballot_sync(half, x & 2),
                           static_cast<uint32_t>(__any_sync(half, x == 7) != 0),
                           static_cast<uint32_t>(__all_sync(half, x != 7) != 0)};
  for (unsigned i = 0; i < 4; ++i) simt::store(out + lane * 4 + i, results[i]);
}

template <class T>
__global__ void arithmetic(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  const uint32_t a = simt::load(in + lane * 3);
  const uint32_t b = simt::load(in + lane * 3 + 1);
  const uint32_t c = simt::load(in + lane * 3 + 2);
  const uint32_t results[]{
      simt::fma2<T>(a & 0xbfffbfffu, b & 0xbfffbfffu, c & 0xbfffbfffu),  // no NaN: its bits are nobody's
      simt::pack<T>(simt::bits<float>(a & 0xbfffffffu), simt::bits<float>(b & 0xbfffffffu)),
      simt::bits<uint32_t>(simt::to_float(T{static_cast<uint16_t>(c & 0xbfffu)})),
      simt::prmt(a, b, c & 0x7777u),
      simt::lop3<0xea>(a, b, c),
      simt::lop3<0x96>(a, b, c),
  };
  for (unsigned i = 0; i < 6; ++i) simt::store(out + lane * 6 + i, results[i]);
}

/// Rounding of float32 to 16 bits where it is hard: ties, denormals, the largest values and beyond.
template <class T>
__global__ void roundings(const uint32_t* in, uint32_t* out) {
  const unsigned lane = threadIdx.x;
  for (unsigned i = 0; i < 4; ++i) {
    const float x = simt::bits<float>(simt::load(in + lane * 4 + i));
    simt::store(out + lane * 4 + i, simt::pack<T>(x, -x));
  }
}

/// What all do with device memory: `in` there, a launch, `words` back.
class Bench {
 public:
  explicit Bench(cuda::Device& device) : device_(device) {}

  using Kernel = void (*)(const uint32_t*, uint32_t*);

  void run(std::string name, bool exact, Kernel kernel, const std::vector<uint32_t>& in, size_t words) {
    Vector vector{std::move(name), exact, std::vector<uint32_t>(words)};
    std::promise<std::shared_ptr<const Error>> done;
    device_.post([&] {
      done.set_value(failure_of([&] {
        const auto bytes = [](size_t count) { return static_cast<int64_t>(count * sizeof(uint32_t)); };
        const auto from = device_.allocate(bytes(in.size()));
        const auto to = device_.allocate(bytes(words));
        device_.copy_in(reinterpret_cast<const std::byte*>(in.data()), from->data(), bytes(in.size()));
        simt::launch(
            kernel, dim3(1), dim3(kLanes), sizeof(Tiles), static_cast<simt::Stream>(device_.stream()),
            reinterpret_cast<const uint32_t*>(from->data()), reinterpret_cast<uint32_t*>(to->data()));
        device_.copy_out(to->data(), reinterpret_cast<std::byte*>(vector.words.data()), bytes(words));
      }));
    });
    if (const auto failure = done.get_future().get()) throw Error(*failure);
    all_.push_back(std::move(vector));
  }

  std::vector<Vector> take() { return std::move(all_); }

 private:
  cuda::Device& device_;
  std::vector<Vector> all_;
};

std::vector<uint32_t> random_words(size_t count, uint32_t seed) {
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) {
    seed = seed * 1664525u + 1013904223u;
    word = seed ^ (seed >> 15);
  }
  return words;
}

/// Operands of mma: 16-bit values in `a` and `b` made by `half` from a random word, float32 ones in `d` by
/// `single`.
std::vector<uint32_t> operands(const std::function<uint32_t(uint32_t)>& half,
                               const std::function<float(uint32_t)>& single, uint32_t seed) {
  std::vector<uint32_t> words = random_words(kLanes * 10, seed);
  for (size_t i = 0; i < words.size(); ++i) {
    const uint32_t random = words[i];
    if (i % 10 < 6) {
      words[i] = half(random & 0xffff) | half(random >> 16) << 16;
    } else {
      const float value = single(random);
      std::memcpy(&words[i], &value, sizeof value);
    }
  }
  return words;
}

/// -8 to 8 in steps of one, as float16 or bfloat16 bits.
template <class T>
uint32_t small_integer(uint32_t random) {
  const auto value = static_cast<float>(static_cast<int>(random % 17) - 8);
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  if (value == 0) return 0;
  if constexpr (std::is_same_v<T, simt::Bfloat16>) return bits >> 16;
  return (bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff);
}

/// Signs and mantissas at random, exponents in the middle of the range.
template <class T>
uint32_t of_mixed_size(uint32_t random) {
  if constexpr (std::is_same_v<T, simt::Bfloat16>) return (random & 0x807f) | (119 + (random >> 7 & 15)) << 7;
  return (random & 0x83ff) | (9 + (random >> 10 & 15) % 13) << 10;
}

template <class T>
void products(Bench& bench, const std::string& type) {
  const auto integer = [](uint32_t random) {
    return static_cast<float>(static_cast<int>(random % 2049) - 1024);
  };
  const auto zero = [](uint32_t) { return 0.0f; };
  const size_t words = kLanes * 8;
  bench.run("mma_m16n8k16." + type + ".integers", true, mma<T>, operands(small_integer<T>, integer, 1),
            words);
  bench.run("mma_m16n8k16." + type + ".mixed", false, mma<T>, operands(of_mixed_size<T>, zero, 2), words);
  bench.run("mma_m16n8k16." + type + ".mixed_on_sum", false, mma<T>, operands(of_mixed_size<T>, integer, 3),
            words);
}

template <class T>
void single_values(Bench& bench, const std::string& type) {
  bench.run("arithmetic." + type, true, arithmetic<T>, random_words(kLanes * 3, 11), kLanes * 6);
  std::vector<uint32_t> hard;
  for (const uint32_t exponent :
       {0u, 1u, 100u, 102u, 103u, 110u, 112u, 113u, 114u, 126u, 127u, 128u, 141u, 142u, 143u, 254u})
    for (const uint32_t mantissa : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x3000u, 0x8000u, 0x18000u})
      hard.push_back(exponent << 23 | mantissa);
  bench.run("roundings." + type, true, roundings<T>, hard, hard.size());
}

}  // namespace

std::vector<Vector> vectors(cuda::Device& device) {
  Bench bench(device);
  products<simt::Half>(bench, "float16");
  products<simt::Bfloat16>(bench, "bfloat16");
  std::vector<uint32_t> bytes = random_words(kLanes * 10, 4);
  bytes[6] = 0x7fffffff;  // sums wrap around
  bench.run("mma_m16n8k32_s8", true, mma_bytes, bytes, kLanes * 4);
  const std::vector<uint32_t> tile = random_words(256, 5);
  bench.run("ldmatrix.x1", true, matrices<1, false>, tile, kLanes);
  bench.run("ldmatrix.x2", true, matrices<2, false>, tile, kLanes * 2);
  bench.run("ldmatrix.x4", true, matrices<4, false>, tile, kLanes * 4);
  bench.run("ldmatrix.x1.trans", true, matrices<1, true>, tile, kLanes);
  bench.run("ldmatrix.x2.trans", true, matrices<2, true>, tile, kLanes * 2);
  bench.run("ldmatrix.x4.trans", true, matrices<4, true>, tile, kLanes * 4);
  bench.run("cp_async.4", true, copies<4>, tile, kLanes * 4);
  bench.run("cp_async.8", true, copies<8>, tile, kLanes * 4);
  bench.run("cp_async.16", true, copies<16>, tile, kLanes * 4);
  bench.run("shuffles", true, shuffles, random_words(kLanes, 6), kLanes * 9);
  std::vector<uint32_t> voters = random_words(kLanes, 7);
  voters[20] = 7;
  bench.run("votes", true, votes, voters, kLanes * 4);
  single_values<simt::Half>(bench, "float16");
  single_values<simt::Bfloat16>(bench, "bfloat16");
  return bench.take();
}

}  // namespace quantaria::golden
