// Quantization and its inverse: float32 [4096, 4096], and bf16 slices of an expert tensor stored [in, out],
// read transposed where they lie. Outputs are reused: the first touch of fresh memory costs more than the
// kernels.

#include <cstdint>
#include <vector>

#include "harness.h"
#include "numerics/bfloat16.h"
#include "ops/copy/copy.h"
#include "ops/quantize/quantize.h"

namespace quantaria::bench {
namespace {

/// Room for whatever a scheme stores of `count` weights.
struct Room {
  explicit Room(int64_t count)
      : packed(static_cast<size_t>(2 * count)),
        floats(static_cast<size_t>(count / 32)),
        integers(floats.size()),
        bytes(floats.size()) {}
  std::vector<uint8_t> packed;
  std::vector<float> floats;
  std::vector<int32_t> integers;
  std::vector<uint8_t> bytes;
};

void square(ThreadPool& pool) {
  constexpr int64_t n = 4096;
  constexpr double values_bytes = 4.0 * n * n;
  const std::vector<float> weight = weights(n * n, 2);
  std::vector<float> values(weight.size());
  auto* const to = reinterpret_cast<std::byte*>(values.data());
  const ConstMatrix w{reinterpret_cast<const std::byte*>(weight.data()), DType::float32, n, n, n, 1};
  Room room(n * n);
  const auto time = [&](const char* name, double stored_bits, const std::function<void()>& run) {
    const Work work{.bytes = values_bytes * (1 + stored_bits / 32)};
    measure("native", std::string("quantize: float32 4096x4096, ") + name, pool.threads(), work,
            [&](int) { run(); });
  };
  const ops::IntScheme int4{.bits = 4};
  time("int4 group 128", 4.25,
       [&] { ops::quantize_int(pool, w, int4, {room.packed.data(), room.floats.data(), nullptr}); });
  time("int4 group 128, back", 4.25, [&] {
    ops::dequantize_int(pool, int4, {room.packed.data(), room.floats.data(), nullptr}, n, n, DType::float32,
                        to);
  });
  const ops::CodebookScheme nf4;
  time("nf4 block 64", 4.5, [&] {
    ops::quantize_codebook(pool, w, nf4, {room.packed.data(), room.floats.data(), nullptr, nullptr, nullptr});
  });
  time("nf4 block 64, back", 4.5, [&] {
    ops::dequantize_codebook(pool, nf4, {room.packed.data(), room.floats.data(), nullptr, nullptr, nullptr},
                             n, n, DType::float32, to);
  });
}

/// Experts of Aria's fc1: [expert, hidden, 2 inter] bf16, gate in the first half of the columns.
void experts(ThreadPool& pool) {
  constexpr int64_t count = 8, in = 2560, out = 1664, stride = 3328;
  const std::vector<float> values = weights(in * stride, 1);
  std::vector<uint16_t> stack(static_cast<size_t>(count * in * stride));
  for (size_t i = 0; i < stack.size(); ++i)
    stack[i] = numerics::bfloat16_from_float(values[i % values.size()]);
  const auto gate = [&](int run) {
    const auto* const first = stack.data() + run % count * in * stride;
    return ConstMatrix{reinterpret_cast<const std::byte*>(first), DType::bfloat16, out, in, 1, stride};
  };
  Room room(out * in);
  ops::ErrorSums sums;
  const auto time = [&](const std::string& name, const std::function<void(int)>& run) {
    measure("native", "quantize: bf16 expert 1664x2560 from columns, " + name, pool.threads(),
            {.bytes = 2.0 * out * in}, run);
  };
  const auto integers = [&](const char* name, const ops::IntScheme& scheme) {
    time(name, [&](int i) {
      ops::quantize_int(
          pool, gate(i), scheme,
          {room.packed.data(), room.floats.data(), scheme.symmetric ? nullptr : room.integers.data()}, &sums);
    });
  };
  integers("int4 group 128, with errors", {.bits = 4});
  integers("int4 affine group 128, with errors", {.bits = 4, .symmetric = false});
  integers("int3 group 128, with errors", {.bits = 3});
  integers("int8 row, with errors", {.bits = 8, .granularity = ops::Granularity::row});
  const auto books = [&](const char* name, const ops::CodebookScheme& scheme) {
    float* const scales = room.floats.data();
    const ops::CodebookStored stored =
        scheme.double_quant
            ? ops::CodebookStored{room.packed.data(), nullptr, room.bytes.data(), scales, scales + 4096}
            : ops::CodebookStored{room.packed.data(), scales, nullptr, nullptr, nullptr};
    time(name, [&](int i) { ops::quantize_codebook(pool, gate(i), scheme, stored, &sums); });
  };
  books("nf4 block 64, with errors", {});
  books("nf4 block 64 double, with errors", {.double_quant = true});
  books("dynamic8 block 256, with errors", {.book = ops::Codebook::dynamic8, .block_size = 256});
  time("fp8 e4m3 row, with errors",
       [&](int i) { ops::quantize_fp8(pool, gate(i), {}, room.packed.data(), room.floats.data(), &sums); });
  time("mxfp4, with errors", [&](int i) {
    ops::quantize_mx(pool, gate(i), {.element = ops::MxElement::e2m1}, room.packed.data(), room.bytes.data(),
                     nullptr, &sums);
  });
  time("llm.int8, with errors",
       [&](int i) { ops::quantize_llm_int8(pool, gate(i), room.packed.data(), room.floats.data(), &sums); });
  time("copied", [&](int i) {
    const Matrix to{reinterpret_cast<std::byte*>(room.packed.data()), DType::bfloat16, out, in, in, 1};
    ops::copy_cast(pool, gate(i), to);
  });
}

const Registration g_square{"quantize: float32 4096x4096", square};
const Registration g_experts{"quantize: bf16 expert", experts};

}  // namespace
}  // namespace quantaria::bench
