#include "ops/moe/experts.h"

#include <algorithm>

#include "core/error.h"
#include "ops/copy/convert.h"
#include "ops/moe/swiglu.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

// Float32 values that may lie between the products at a time. More tokens go through in parts.
constexpr int64_t kValuesBetween = int64_t{16} << 20;

/// Tokens [first, end): their slots by expert, and what lies between the products, one row a slot.
struct Part {
  int64_t first;
  int64_t end;
  std::vector<int64_t> begins;  // [experts + 1], rows of each expert
  std::vector<int32_t> tokens;  // of each row
  std::vector<int32_t> row_of;  // of each slot, from the part's first

  Part(const Slots& slots, int64_t from, int64_t to) : first(from), end(to), begins{0} {
    const int64_t first_slot = first * slots.top_k;
    const int64_t end_slot = end * slots.top_k;
    row_of.resize(static_cast<size_t>(end_slot - first_slot));
    for (int64_t e = 0; e < slots.experts; ++e) {
      // An expert's slots rise, so a part's lie side by side.
      const int32_t* const last = slots.order + slots.offsets[e + 1];
      for (const int32_t* slot = std::lower_bound(slots.order + slots.offsets[e], last, first_slot);
           slot < last && *slot < end_slot; ++slot) {
        row_of[static_cast<size_t>(*slot - first_slot)] = static_cast<int32_t>(tokens.size());
        tokens.push_back(static_cast<int32_t>(*slot / slots.top_k));
      }
      begins.push_back(static_cast<int64_t>(tokens.size()));
    }
  }
};

/// What lies between the products, a row for each slot of a part.
struct Between {
  float* activated;  // [rows, inter]
  float* results;    // [rows, hidden]
};

ConstMatrix rows_of(const float* values, int64_t first, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values + first * cols), DType::float32, rows, cols, cols, 1};
}

void run_part(ThreadPool& pool, const ConstMatrix& x, int64_t inter, const Slots& slots,
              const std::vector<ExpertFactors>& factors, const Part& part, const Between& between,
              const Matrix& y) {
  const int64_t hidden = x.cols;
  std::vector<Product> up;
  std::vector<Product> down;
  for (int64_t e = 0; e < slots.experts; ++e) {
    const int64_t begin = part.begins[static_cast<size_t>(e)];
    const int64_t count = part.begins[static_cast<size_t>(e) + 1] - begin;
    if (count == 0) continue;
    const ExpertFactors& expert = factors[static_cast<size_t>(e)];
    up.push_back({{x, part.tokens.data() + begin, count}, {expert.gate.get(), expert.up.get()}, {}, false});
    up.back().store = [between, begin, inter](const Piece& piece) {
      for (int64_t r = 0; r < piece.rows; ++r)
        swiglu_row(piece.c[0] + r * piece.stride, piece.c[1] + r * piece.stride, piece.columns,
                   between.activated + (begin + piece.row + r) * inter + piece.column);
    };
    down.push_back(
        {{rows_of(between.activated, begin, count, inter), nullptr, count}, {expert.down.get()}, {}, false});
    down.back().store = [between, begin, hidden](const Piece& piece) {
      for (int64_t r = 0; r < piece.rows; ++r)
        std::copy_n(piece.c[0] + r * piece.stride, piece.columns,
                    between.results + (begin + piece.row + r) * hidden + piece.column);
    };
  }
  multiply_all(pool, up);
  multiply_all(pool, down);
  pool.parallel_for(part.end - part.first, [&](int64_t t) {
    float* const sum = thread_buffer<float>(Slot::sums, hidden);
    if (slots.top_k == 0) std::fill_n(sum, hidden, 0.0f);
    for (int64_t k = 0; k < slots.top_k; ++k) {
      const int64_t row = part.row_of[static_cast<size_t>(t * slots.top_k + k)];
      weigh_row(between.results + row * hidden, slots.weights[(part.first + t) * slots.top_k + k], hidden,
                k > 0, sum);
    }
    convert_row(DType::float32, reinterpret_cast<const std::byte*>(sum), y.dtype,
                y.data + (part.first + t) * y.row_stride * size_of(y.dtype), hidden);
  });
}

}  // namespace

void experts(ThreadPool& pool, const ConstMatrix& x, int64_t inter, const Slots& slots,
             const std::function<ExpertFactors(int64_t)>& factors,
             const std::function<std::shared_ptr<Storage>(int64_t)>& allocate, const Matrix& y) {
  std::vector<ExpertFactors> all(static_cast<size_t>(slots.experts));
  for (int64_t e = 0; e < slots.experts; ++e)
    if (slots.offsets[e + 1] > slots.offsets[e]) all[static_cast<size_t>(e)] = factors(e);
  const int64_t values = std::max<int64_t>(1, slots.top_k * (x.cols + inter));
  const int64_t tokens = std::clamp<int64_t>(kValuesBetween / values, 1, std::max<int64_t>(1, slots.tokens));
  const std::shared_ptr<Storage> memory = allocate(tokens * values * 4);
  auto* const floats = reinterpret_cast<float*>(memory->data());
  const Between between{floats, floats + tokens * slots.top_k * inter};
  for (int64_t first = 0; first < slots.tokens; first += tokens)
    run_part(pool, x, inter, slots, all, Part(slots, first, std::min(first + tokens, slots.tokens)), between,
             y);
}

void check_counts(const int32_t* counts, int64_t experts, int64_t rows) {
  int64_t first = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (counts[e] < 0) fail(ErrorCode::argument, "counts[", e, "]: ", counts[e], ", at least 0 expected");
    if (counts[e] > rows - first) fail(ErrorCode::argument, "counts: more than the ", rows, " rows of x");
    first += counts[e];
  }
  if (first != rows) fail(ErrorCode::argument, "counts: ", first, " rows in all, but x has ", rows);
}

void grouped_matmul(ThreadPool& pool, const ConstMatrix& x, const int32_t* counts,
                    const std::vector<std::unique_ptr<Factor>>& factors, const Matrix& y) {
  check_counts(counts, static_cast<int64_t>(factors.size()), x.rows);
  std::vector<Product> products;
  int64_t first = 0;
  for (size_t e = 0; e < factors.size(); ++e) {
    const int64_t count = counts[e];
    if (count > 0) {
      products.push_back(
          {{part_of(x, first, count, 0, x.cols), nullptr, count}, {factors[e].get()}, {}, false});
      products.back().store = [&y, first](const Piece& piece) {
        for (int64_t r = 0; r < piece.rows; ++r)
          convert_row(DType::float32, reinterpret_cast<const std::byte*>(piece.c[0] + r * piece.stride),
                      y.dtype,
                      y.data + ((first + piece.row + r) * y.row_stride + piece.column) * size_of(y.dtype),
                      piece.columns);
      };
    }
    first += count;
  }
  multiply_all(pool, products);
}

}  // namespace quantaria::ops
