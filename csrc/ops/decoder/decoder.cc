#include "ops/decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/error.h"
#include "ops/decoder/kernels.h"
#include "ops/decoder/rows.h"
#include "ops/moe/swiglu.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kRowsOfTask = 16;

/// body(first, end) for runs of rows.
void for_rows(ThreadPool& pool, int64_t rows, const std::function<void(int64_t, int64_t)>& body) {
  pool.parallel_for((rows + kRowsOfTask - 1) / kRowsOfTask, [&](int64_t task) {
    body(task * kRowsOfTask, std::min(rows, (task + 1) * kRowsOfTask));
  });
}

/// The first index of the largest of a row; a NaN is none.
int64_t largest_at(const float* row, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i)
    if (row[i] > row[best]) best = i;
  return best;
}

}  // namespace

void rms_norm(ThreadPool& pool, const ConstMatrix& x, const ConstMatrix& gain, float eps, const Matrix& y) {
  std::vector<float> gain_room = room_for(x.cols);
  const float* gains = floats_of(gain, 0, 0, x.cols, gain_room.data());
  for_rows(pool, x.rows, [&](int64_t first, int64_t end) {
    std::vector<float> room = room_for(2 * x.cols);
    for (int64_t t = first; t < end; ++t) {
      const RowWriter to(y, t, room.data() + x.cols);
      decoder_kernels().rms_norm(floats_of(x, t, 0, x.cols, room.data()), gains, eps, x.cols, to.floats());
      to.finish();
    }
  });
}

void rotate(ThreadPool& pool, const ConstMatrix& x, const float* cosines, const float* sines,
            const Rotary& rotary, const Matrix& y) {
  const int64_t pairs = rotary.dims / 2;
  const int64_t apart = rotary.interleaved ? 1 : pairs;
  for_rows(pool, x.rows, [&](int64_t first, int64_t end) {
    std::vector<float> room = room_for(2 * x.cols);
    for (int64_t t = first; t < end; ++t) {
      const float* from = floats_of(x, t, 0, x.cols, room.data());
      const RowWriter writer(y, t, room.data() + x.cols);
      float* to = writer.floats();
      std::copy(from, from + x.cols, to);
      const int64_t position = rotary.first + t % rotary.sequence;
      for (int64_t head = 0; head < rotary.heads; ++head) {
        const int64_t start = head * rotary.head_dim + rotary.offset;
        for (int64_t i = 0; i < pairs; ++i) {
          const float cosine = cosines[position * pairs + i];
          const float sine = sines[position * pairs + i];
          const int64_t at = start + (rotary.interleaved ? 2 * i : i);
          const float a = from[at];
          const float b = from[at + apart];
          to[at] = a * cosine - b * sine;
          to[at + apart] = b * cosine + a * sine;
        }
      }
      writer.finish();
    }
  });
}

void check_ids(const int32_t* ids, int64_t count, int64_t vocabulary) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      fail(ErrorCode::argument, "token id ", ids[i], " at position ", i, " is not in the vocabulary of ",
           vocabulary);
}

void embed(ThreadPool& pool, const ConstMatrix& table, const int32_t* ids, const Matrix& y) {
  check_ids(ids, y.rows, table.rows);
  for_rows(pool, y.rows, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t)
      convert_row(table.dtype, row_of(table, ids[t]), y.dtype, y.data + t * y.row_stride * size_of(y.dtype),
                  y.cols);
  });
}

void add(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* gates,
         const Matrix& y) {
  for_rows(pool, y.rows, [&](int64_t first, int64_t end) {
    std::vector<float> room = room_for(3 * y.cols);
    for (int64_t t = first; t < end; ++t) {
      const float* left = floats_of(a, t, 0, y.cols, room.data());
      const float* right = floats_of(b, t, 0, y.cols, room.data() + y.cols);
      const RowWriter to(y, t, room.data() + 2 * y.cols);
      float logit = 0;
      const float gate =
          gates == nullptr ? 1.0f : 1.0f / (1.0f + std::exp(-*floats_of(*gates, t, 0, 1, &logit)));
      for (int64_t i = 0; i < y.cols; ++i) to.floats()[i] = left[i] + gate * right[i];
      to.finish();
    }
  });
}

void swiglu(ThreadPool& pool, const ConstMatrix& gate, const ConstMatrix& up, const Matrix& y) {
  for_rows(pool, y.rows, [&](int64_t first, int64_t end) {
    std::vector<float> room = room_for(3 * y.cols);
    for (int64_t t = first; t < end; ++t) {
      const RowWriter to(y, t, room.data() + 2 * y.cols);
      swiglu_row(floats_of(gate, t, 0, y.cols, room.data()),
                 floats_of(up, t, 0, y.cols, room.data() + y.cols), y.cols, to.floats());
      to.finish();
    }
  });
}

void score_tokens(ThreadPool& pool, const float* logits, const float* baseline, int64_t rows,
                  int64_t vocabulary, const int32_t* targets, TokenScore* scores) {
  check_ids(targets, rows, vocabulary);
  const DecoderKernels& kernels = decoder_kernels();
  pool.parallel_for(rows, [&](int64_t t) {
    const float* row = logits + t * vocabulary;
    const LogitSum sum = kernels.logit_sum(row, vocabulary);
    const double log_sum = std::log(sum.sum);
    scores[t] = {};
    const double above = static_cast<double>(sum.largest) - static_cast<double>(row[targets[t]]);
    scores[t].loss = static_cast<float>(log_sum + above);
    if (baseline == nullptr) return;
    const float* other = baseline + t * vocabulary;
    const LogitSum other_sum = kernels.logit_sum(other, vocabulary);
    const double weighted = kernels.divergence(other, other_sum.largest, row, sum.largest, vocabulary);
    scores[t].divergence = static_cast<float>(weighted / other_sum.sum + (log_sum - std::log(other_sum.sum)));
    scores[t].agree = largest_at(row, vocabulary) == largest_at(other, vocabulary) ? 1.0f : 0.0f;
    double error = 0;
    double reference = 0;
    for (int64_t i = 0; i < vocabulary; ++i) {
      const double of_other = static_cast<double>(other[i]);
      const double difference = static_cast<double>(row[i]) - of_other;
      error += difference * difference;
      reference += of_other * of_other;
    }
    scores[t].error = static_cast<float>(error);
    scores[t].reference = static_cast<float>(reference);
  });
}

}  // namespace quantaria::ops
