#include <algorithm>

#include "ops/decoder/decoder.h"
#include "ops/decoder/kernels.h"
#include "ops/decoder/rows.h"

namespace quantaria::ops {
namespace {

/// Positions of a sequence whose queries share the work of turning keys round.
constexpr int64_t kPositions = 64;

int64_t round_up(int64_t n) { return (n + kProductColumns - 1) / kProductColumns * kProductColumns; }

/// The queries of one run of positions against one key head: all query heads that read it.
class Task {
 public:
  Task(const Attention& a, const ConstMatrix& q, const ConstMatrix& k, const ConstMatrix& v, int64_t sequence,
       int64_t kv_head, int64_t first, int64_t end)
      : a_(a), q_(q), k_(k), v_(v), sequence_(sequence), kv_head_(kv_head), first_(first) {
    group_ = a.heads / a.kv_heads;
    rows_ = (end - first) * group_;
    low_ = seen_from(first);
    count_ = position_of(end - 1) + 1 - low_;
    stride_ = round_up(count_);
  }

  void run(const Matrix& y) {
    gather_queries();
    score();
    for (int64_t r = 0; r < rows_; ++r) normalise(r);
    weigh(y);
  }

 private:
  int64_t query_of(int64_t row) const { return first_ + row / group_; }
  int64_t head_of(int64_t row) const { return kv_head_ * group_ + row % group_; }
  int64_t position_of(int64_t query) const { return a_.keys - a_.queries + query; }
  /// The first key that a query sees.
  int64_t seen_from(int64_t query) const {
    return a_.window == 0 ? 0 : std::max<int64_t>(0, position_of(query) + 1 - a_.window);
  }

  void gather_queries() {
    queries_ = room_for(rows_ * a_.key_dim);
    for (int64_t r = 0; r < rows_; ++r) {
      float* to = queries_.data() + r * a_.key_dim;
      const int64_t row = sequence_ * a_.queries + query_of(r);
      const float* from = floats_of(q_, row, head_of(r) * a_.key_dim, a_.key_dim, to);
      for (int64_t i = 0; i < a_.key_dim; ++i) to[i] = from[i] * a_.scale;
    }
  }

  /// scores_[r][s] = q[r] . k[low + s], sixteen keys at a time, turned round first.
  void score() {
    scores_ = room_for(rows_ * stride_);
    std::vector<float> turned = room_for(a_.key_dim * kProductColumns);
    std::vector<float> room = room_for(a_.key_dim);
    for (int64_t s = 0; s < count_; s += kProductColumns) {
      for (int64_t j = 0; j < kProductColumns; ++j) {
        if (s + j >= count_) {
          for (int64_t i = 0; i < a_.key_dim; ++i) turned[at(i, j)] = 0;
          continue;
        }
        const int64_t row = sequence_ * a_.keys + low_ + s + j;
        const float* key = floats_of(k_, row, kv_head_ * a_.key_dim, a_.key_dim, room.data());
        for (int64_t i = 0; i < a_.key_dim; ++i) turned[at(i, j)] = key[i];
      }
      decoder_kernels().product(queries_.data(), a_.key_dim, rows_, a_.key_dim, turned.data(),
                                kProductColumns, scores_.data() + s, stride_);
    }
  }

  static size_t at(int64_t i, int64_t j) { return static_cast<size_t>(i * kProductColumns + j); }

  /// Scores to probabilities; keys that the query does not see get 0.
  void normalise(int64_t r) {
    float* row = scores_.data() + r * stride_;
    const int64_t from = seen_from(query_of(r)) - low_;
    const int64_t end = position_of(query_of(r)) + 1 - low_;
    const float sum = decoder_kernels().exponentials(row + from, end - from);
    std::fill(row, row + from, 0.0f);
    for (int64_t s = from; s < end; ++s) row[s] /= sum;
    std::fill(row + end, row + stride_, 0.0f);
  }

  /// y[r] = sum over s of scores_[r][s] * v[low + s].
  void weigh(const Matrix& y) {
    const int64_t width = round_up(a_.value_dim);
    std::vector<float> values(static_cast<size_t>(count_ * width));
    for (int64_t s = 0; s < count_; ++s) {
      float* to = values.data() + s * width;
      const int64_t row = sequence_ * a_.keys + low_ + s;
      const float* from = floats_of(v_, row, kv_head_ * a_.value_dim, a_.value_dim, to);
      if (from != to) std::copy(from, from + a_.value_dim, to);
    }
    std::vector<float> sums = room_for(rows_ * width);
    weigh_seen(values.data(), width, sums.data());
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t row = sequence_ * a_.queries + query_of(r);
      std::byte* to = y.data + (row * y.row_stride + head_of(r) * a_.value_dim) * size_of(y.dtype);
      convert_row(DType::float32, reinterpret_cast<const std::byte*>(sums.data() + r * width), y.dtype, to,
                  a_.value_dim);
    }
  }

  /// Eight rows at a time, over the keys that any of them sees; a probability of 0 adds nothing.
  void weigh_seen(const float* values, int64_t width, float* sums) {
    constexpr int64_t kRows = 8;
    for (int64_t r = 0; r < rows_; r += kRows) {
      const int64_t rows = std::min(kRows, rows_ - r);
      const int64_t from = seen_from(query_of(r)) - low_;
      const int64_t end = position_of(query_of(r + rows - 1)) + 1 - low_;
      for (int64_t c = 0; c < width; c += kProductColumns)
        decoder_kernels().product(scores_.data() + r * stride_ + from, stride_, rows, end - from,
                                  values + from * width + c, width, sums + r * width + c, width);
    }
  }

  const Attention& a_;
  const ConstMatrix& q_;
  const ConstMatrix& k_;
  const ConstMatrix& v_;
  int64_t sequence_, kv_head_, first_;
  int64_t group_, rows_;
  int64_t low_, count_;  // keys that any of the queries sees
  int64_t stride_;
  std::vector<float> queries_, scores_;
};

}  // namespace

void attend(ThreadPool& pool, const ConstMatrix& q, const ConstMatrix& k, const ConstMatrix& v,
            const Attention& a, const Matrix& y) {
  const int64_t blocks = (a.queries + kPositions - 1) / kPositions;
  pool.parallel_for(a.sequences * a.kv_heads * blocks, [&](int64_t task) {
    const int64_t first = task % blocks * kPositions;
    const int64_t kv_head = task / blocks % a.kv_heads;
    const int64_t sequence = task / blocks / a.kv_heads;
    Task(a, q, k, v, sequence, kv_head, first, std::min(a.queries, first + kPositions)).run(y);
  });
}

}  // namespace quantaria::ops
