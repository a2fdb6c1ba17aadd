#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "simt/simt.h"

// Every collective against plain code on whole matrices, each element reached through ldmatrix and the
// fragments.
namespace {

using namespace quantaria;

struct FloatTiles {
  alignas(16) uint16_t a[16][24];         // rows of 48 bytes: no bank conflicts
  alignas(16) uint16_t b[16][8];          // [k, n]: transposed on the way
  alignas(16) uint16_t b_columns[8][24];  // [n, k]
};

template <class T>
__global__ void float_products(const uint16_t* a, const uint16_t* b, const float* c, float* d,
                               float* d_columns) {
  auto& tiles = simt::shared<FloatTiles>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) tiles.a[i / 16][i % 16] = a[i];
  for (unsigned i = lane; i < 128; i += 32) {
    tiles.b[i / 8][i % 8] = b[i];
    tiles.b_columns[i % 8][i / 8] = b[i];
  }
  __syncwarp();
  uint32_t fa[4];
  simt::ldmatrix(fa, &tiles.a[lane % 16][lane / 16 * 8]);
  uint32_t fb[2];
  simt::ldmatrix<2, true>(fb, &tiles.b[lane % 16][0]);
  uint32_t fb_columns[2];
  simt::ldmatrix<2>(fb_columns, &tiles.b_columns[lane % 8][lane / 8 % 2 * 8]);
  float sum[4];
  float sum_columns[4];
  for (unsigned i = 0; i < 4; ++i)
    sum[i] = sum_columns[i] = c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  simt::mma_m16n8k16<T>(sum, fa, fb);
  simt::mma_m16n8k16<T>(sum_columns, fa, fb_columns);
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned place = (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
    d[place] = sum[i];
    d_columns[place] = sum_columns[i];
  }
}

template <class T>
void check_float_products() {
  std::mt19937 random(5);
  // Small integers and a few powers of two: sums are exact in float32, so that any order gives the same bits.
  const auto value = [&] { return std::ldexp(static_cast<float>(static_cast<int>(random() % 33)) - 16, -3); };
  std::vector<float> a(256);
  std::vector<float> b(128);
  std::vector<float> c(128);
  for (auto* values : {&a, &b, &c})
    for (float& x : *values) x = value();
  const auto stored = [](const std::vector<float>& values) {
    std::vector<uint16_t> bits;
    for (const float x : values) bits.push_back(simt::from_float<T>(x).bits);
    return bits;
  };
  const std::vector<uint16_t> a_bits = stored(a);
  const std::vector<uint16_t> b_bits = stored(b);
  std::vector<float> d(128, std::nanf(""));
  std::vector<float> d_columns(128, std::nanf(""));
  simt::launch(float_products<T>, dim3(1), dim3(32), sizeof(FloatTiles), {}, a_bits.data(), b_bits.data(),
               c.data(), d.data(), d_columns.data());
  for (size_t m = 0; m < 16; ++m)
    for (size_t n = 0; n < 8; ++n) {
      double sum = c[m * 8 + n];
      for (size_t k = 0; k < 16; ++k) sum += double{a[m * 16 + k]} * double{b[k * 8 + n]};
      CHECK_EQ(d[m * 8 + n], static_cast<float>(sum));
      CHECK_EQ(d_columns[m * 8 + n], static_cast<float>(sum));
    }
  CHECK_EQ(simt::emulator::last_counts().collectives, uint64_t{6});
}

TEST("simt: mma_m16n8k16 of float16 is the matrix product") { check_float_products<simt::Half>(); }
TEST("simt: mma_m16n8k16 of bfloat16 is the matrix product") { check_float_products<simt::Bfloat16>(); }

struct ByteTiles {
  alignas(16) int8_t a[16][48];
  alignas(16) int8_t b[8][48];
};

__global__ void byte_products(const int8_t* a, const int8_t* b, int32_t* d) {
  auto& tiles = simt::shared<ByteTiles>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 512; i += 32) tiles.a[i / 32][i % 32] = a[i];
  for (unsigned i = lane; i < 256; i += 32) tiles.b[i / 32][i % 32] = b[i];
  __syncwarp();
  uint32_t fa[4];
  simt::ldmatrix(fa, &tiles.a[lane % 16][lane / 16 * 16]);
  uint32_t fb[2];
  simt::ldmatrix<2>(fb, &tiles.b[lane % 8][lane / 8 % 2 * 16]);
  int32_t sum[4]{std::numeric_limits<int32_t>::max(), 0, 1, -1};
  simt::mma_m16n8k32_s8(sum, fa, fb);
  for (unsigned i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

TEST("simt: mma_m16n8k32 of signed bytes is the matrix product and wraps") {
  std::mt19937 random(6);
  std::vector<int8_t> a(512);
  std::vector<int8_t> b(256);
  for (auto* values : {&a, &b})
    for (int8_t& x : *values) x = static_cast<int8_t>(random());
  a[0] = b[0] = -128;
  std::vector<int32_t> d(128);
  simt::launch(byte_products, dim3(1), dim3(32), sizeof(ByteTiles), {}, a.data(), b.data(), d.data());
  constexpr int32_t kStart[]{std::numeric_limits<int32_t>::max(), 0, 1, -1};
  for (size_t m = 0; m < 16; ++m)
    for (size_t n = 0; n < 8; ++n) {
      auto sum = static_cast<uint32_t>(kStart[m / 8 * 2 + n % 2]);
      for (size_t k = 0; k < 32; ++k) sum += static_cast<uint32_t>(a[m * 32 + k] * b[n * 32 + k]);
      CHECK_EQ(d[m * 8 + n], static_cast<int32_t>(sum));
    }
}

struct Matrices {
  alignas(16) uint16_t rows[32][8];
};

template <int N, bool Transposed>
__global__ void matrices(uint32_t* out) {
  auto& layout = simt::shared<Matrices>();
  const unsigned lane = threadIdx.x;
  for (unsigned c = 0; c < 8; ++c) layout.rows[lane][c] = static_cast<uint16_t>(lane * 8 + c);
  __syncwarp();
  uint32_t r[N];
  // Lanes beyond the last matrix name a place that nobody may read.
  simt::ldmatrix<N, Transposed>(r, lane < N * 8 ? &layout.rows[lane][0] : nullptr);
  for (unsigned i = 0; i < N; ++i) out[i * 32 + lane] = r[i];
}

template <int N, bool Transposed>
void check_matrices() {
  std::vector<uint32_t> out(N * 32);
  simt::launch(matrices<N, Transposed>, dim3(1), dim3(32), sizeof(Matrices), {}, out.data());
  for (unsigned i = 0; i < N; ++i)
    for (unsigned lane = 0; lane < 32; ++lane)
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned slow = lane / 4;
        const unsigned fast = lane % 4 * 2 + half;
        const unsigned row = Transposed ? fast : slow;
        const unsigned col = Transposed ? slow : fast;
        CHECK_EQ(out[i * 32 + lane] >> 16 * half & 0xffffu, (i * 8 + row) * 8 + col);
      }
  CHECK_EQ(simt::emulator::last_counts().bank_conflicts, uint64_t{0});
}

TEST(
    "simt: ldmatrix gives each lane its two elements, straight and transposed, of one, two and four "
    "matrices") {
  check_matrices<1, false>();
  check_matrices<2, false>();
  check_matrices<4, false>();
  check_matrices<1, true>();
  check_matrices<2, true>();
  check_matrices<4, true>();
}

struct Pitch128 {
  alignas(128) uint16_t rows[8][64];
};

__global__ void conflicting(uint32_t* out) {
  auto& layout = simt::shared<Pitch128>();
  uint32_t r[1];
  simt::ldmatrix<1>(r, &layout.rows[threadIdx.x % 8][0]);
  out[threadIdx.x] = r[0];
}

TEST("simt: rows of ldmatrix 128 bytes apart are counted as seven bank conflicts") {
  std::vector<uint32_t> out(32);
  simt::launch(conflicting, dim3(1), dim3(32), sizeof(Pitch128), {}, out.data());
  CHECK_EQ(simt::emulator::last_counts().bank_conflicts, uint64_t{7});
}

constexpr int kShuffles = 6;

__global__ void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const int results[kShuffles]{__shfl_sync(~0u, lane, 5),      __shfl_sync(~0u, lane, 9, 8),
                               __shfl_xor_sync(~0u, lane, 17), __shfl_down_sync(~0u, lane, 3, 16),
                               __shfl_up_sync(~0u, lane, 3),   __shfl_xor_sync(~0u, lane, 4, 4)};
  for (int i = 0; i < kShuffles; ++i) out[i * 32 + lane] = results[i];
}

TEST("simt: shuffles take the lane that CUDA says, within their segment, else their own") {
  std::vector<int> out(kShuffles * 32, -1);
  simt::launch(shuffles, dim3(1), dim3(32), 0, {}, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    const int expected[kShuffles]{
        5, lane / 8 * 8 + 1, lane ^ 17, lane % 16 + 3 < 16 ? lane + 3 : lane, lane >= 3 ? lane - 3 : lane,
        // Reaching for a later segment gives one's own, for an earlier one its value.
        (lane ^ 4) / 4 > lane / 4 ? lane : lane ^ 4};
    for (int i = 0; i < kShuffles; ++i) CHECK_EQ(out[static_cast<size_t>(i * 32 + lane)], expected[i]);
  }
}

__global__ void wide_values(double* out) { out[threadIdx.x] = __shfl_xor_sync(~0u, 0.1 * threadIdx.x, 1); }

TEST("simt: a shuffle moves all bits of a double") {
  std::vector<double> out(32);
  simt::launch(wide_values, dim3(1), dim3(32), 0, {}, out.data());
  for (unsigned lane = 0; lane < 32; ++lane) CHECK_EQ(out[lane], 0.1 * (lane ^ 1));
}

__global__ void votes(uint32_t* out) {
  const unsigned lane = threadIdx.x;
  uint32_t odd = 0;
  if (lane < 16) odd = __ballot_sync(0xffffu, lane % 2);  // half a warp by itself
  out[lane] = odd;
  out[32 + lane] = __ballot_sync(~0u, lane == 31);
  out[64 + lane] = static_cast<uint32_t>(__any_sync(~0u, lane == 3)) << 2 |
                   static_cast<uint32_t>(__all_sync(~0u, lane != 3)) << 1 |
                   static_cast<uint32_t>(__all_sync(~0u, lane < 32));
}

TEST("simt: votes tell every lane of the mask") {
  std::vector<uint32_t> out(96);
  simt::launch(votes, dim3(1), dim3(32), 0, {}, out.data());
  for (unsigned lane = 0; lane < 32; ++lane) {
    CHECK_EQ(out[lane], lane < 16 ? 0xaaaau : 0u);
    CHECK_EQ(out[32 + lane], 0x80000000u);
    CHECK_EQ(out[64 + lane], 0b101u);
  }
}

TEST("simt: lop3 is its truth table, prmt picks bytes") {
  CHECK_EQ(simt::lop3<(0xf0 & 0xcc) | 0xaa>(0x12345678u, 0x000f000fu, 0x64006400u),
           (0x12345678u & 0x000f000fu) | 0x64006400u);
  CHECK_EQ(simt::lop3<0xf0 ^ 0xcc ^ 0xaa>(0x12345678u, 0x9abcdef0u, 0x0f1e2d3cu),
           0x12345678u ^ 0x9abcdef0u ^ 0x0f1e2d3cu);
  CHECK_EQ(simt::prmt(0x03020100u, 0x07060504u, 0x7531u), 0x07050301u);
  CHECK_EQ(simt::prmt(0x03020100u, 0x07060504u, 0xfdb9u), 0x07050301u);
}

TEST("simt: pack rounds each value to nearest even and puts the first below") {
  CHECK_EQ(simt::pack<simt::Half>(1.0f, -2.0f), 0xc0003c00u);
  CHECK_EQ(simt::pack<simt::Half>(1.0f + 0x1p-11f, 1.0f + 0x3p-11f), 0x3c023c00u);
  CHECK_EQ(simt::pack<simt::Bfloat16>(1.0f + 0x1p-8f, 1.0f + 0x3p-8f), 0x3f823f80u);
}

TEST("simt: fma2 rounds a b + c once, also beside ties that float32 and float64 cannot hold") {
  const auto half = [](float x) { return uint32_t{numerics::half_from_float(x)}; };
  const auto bfloat = [](float x) { return uint32_t{numerics::bfloat16_from_float(x)}; };
  // 1 + 2^-11 is a tie between 1 and 1 + 2^-10; the product adds or takes a little.
  CHECK_EQ(simt::fma2<simt::Half>(half(0x1p-11f), half(1 + 0x1p-10f), half(1)), half(1 + 0x1p-10f));
  CHECK_EQ(simt::fma2<simt::Half>(half(0x1p-11f), half(1 - 0x1p-11f), half(1)), half(1));
  CHECK_EQ(simt::fma2<simt::Bfloat16>(bfloat(0x1p-60f), bfloat(0x1p-60f), bfloat(1)), bfloat(1));
  // A product that is a tie, (1 + 2^-7)(1 + 2^-1) = 1.5 + 1.5 * 2^-7, decided by something 2^-100 of it.
  CHECK_EQ(simt::fma2<simt::Bfloat16>(bfloat(1 + 0x1p-7f), bfloat(1.5f), bfloat(0x1p-100f)),
           bfloat(1.5f + 0x1p-6f));
  CHECK_EQ(simt::fma2<simt::Bfloat16>(bfloat(1 + 0x1p-7f), bfloat(1.5f), bfloat(-0x1p-100f)),
           bfloat(1.5f + 0x1p-7f));
  // The nibble tricks of dequantization are exact.
  for (uint32_t q = 0; q < 16; ++q)
    CHECK_EQ(simt::fma2<simt::Half>(0x6400u | q << 4, half(1.0f / 16), half(-72)),
             half(static_cast<float>(q) - 8));
  CHECK_EQ(simt::fma2<simt::Half>(half(65504), half(2), half(0)),
           half(std::numeric_limits<float>::infinity()));
}

}  // namespace
