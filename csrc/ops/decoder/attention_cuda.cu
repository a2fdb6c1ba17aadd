#include <cmath>

#include "core/error.h"
#include "ops/copy/cast_value.cuh"
#include "ops/decoder/decoder_cuda.h"

namespace quantaria::ops {
namespace {

// 16 queries of a head in a block, eight threads each; keys in tiles of 32, their elements in runs of 64;
// 128 columns of the values. Whatever the extents, so that any head fits.
constexpr int kQueries = 16;
constexpr int kOfQuery = 8;
constexpr int kThreads = kQueries * kOfQuery;
constexpr int kKeys = 32;
constexpr int kRun = 64;
constexpr int kColumns = 128;
constexpr int kKeysEach = kKeys / kOfQuery;
constexpr int kColumnsEach = kColumns / kOfQuery;
constexpr unsigned kAll = ~0u;

/// One element more a row: neighbouring rows begin in different banks.
struct AttentionShared {
  float query[kQueries][kRun + 1];
  float key[kKeys][kRun + 1];
  float value[kKeys][kColumns + 1];
  float share[kQueries][kKeys + 1];  // exp(score - largest)
};

struct AttentionTask {
  ConstMatrix q, k, v;
  Attention a;
  Matrix y;
  int64_t query_tiles;
  int64_t column_tiles;
};

/// The largest and the sum of a query's eight threads, which are neighbours.
__device__ __forceinline__ float largest_of_query(float x) {
#pragma unroll
  for (int apart = 1; apart < kOfQuery; apart *= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, apart));
  return x;
}
__device__ __forceinline__ float sum_of_query(float x) {
#pragma unroll
  for (int apart = 1; apart < kOfQuery; apart *= 2) x += __shfl_xor_sync(kAll, x, apart);
  return x;
}

__global__ void __launch_bounds__(kThreads) attend_queries(const __grid_constant__ AttentionTask p) {
  auto& shared = simt::shared<AttentionShared>();
  const Attention& a = p.a;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kOfQuery;
  const int part = thread % kOfQuery;
  int64_t task = blockIdx.x;
  const int64_t col0 = task % p.column_tiles * kColumns;
  task /= p.column_tiles;
  const int64_t first = task % p.query_tiles * kQueries;
  task /= p.query_tiles;
  const int64_t head = task % a.heads;
  const int64_t sequence = task / a.heads;
  const int64_t kv_head = head * a.kv_heads / a.heads;

  const auto position_of = [&](int64_t query) { return a.keys - a.queries + query; };
  const auto seen_from = [&](int64_t query) {
    const int64_t from = position_of(query) + 1 - a.window;
    return a.window == 0 || from < 0 ? int64_t{0} : from;
  };
  const int64_t query = first + row < a.queries ? first + row : a.queries - 1;
  const int64_t last = first + kQueries < a.queries ? first + kQueries - 1 : a.queries - 1;
  const int64_t end = position_of(last) + 1;

  const auto element = [](const ConstMatrix& m, int64_t r, int64_t c) {
    return load_float(m.dtype, m.data, r * m.row_stride + c * m.col_stride);
  };
  float sum[kColumnsEach] = {};
  float largest = -INFINITY;
  float total = 0;
  for (int64_t s0 = seen_from(first) / kKeys * kKeys; s0 < end; s0 += kKeys) {
    float score[kKeysEach] = {};
    for (int64_t d0 = 0; d0 < a.key_dim; d0 += kRun) {
      __syncthreads();  // all have left the last run, and the last tile of values
      for (int i = thread; i < (kQueries + kKeys) * kRun; i += kThreads) {
        const int r = i / kRun;
        const int64_t d = d0 + i % kRun;
        float x = 0;
        if (r < kQueries) {
          if (first + r < a.queries && d < a.key_dim)
            x = element(p.q, sequence * a.queries + first + r, head * a.key_dim + d) * a.scale;
          shared.query[r][i % kRun] = x;
        } else {
          const int64_t s = s0 + r - kQueries;
          if (s < end && d < a.key_dim) x = element(p.k, sequence * a.keys + s, kv_head * a.key_dim + d);
          shared.key[r - kQueries][i % kRun] = x;
        }
      }
      if (d0 == 0) {
        for (int i = thread; i < kKeys * kColumns; i += kThreads) {
          const int64_t s = s0 + i / kColumns;
          const int64_t c = col0 + i % kColumns;
          shared.value[i / kColumns][i % kColumns] =
              s < end && c < a.value_dim ? element(p.v, sequence * a.keys + s, kv_head * a.value_dim + c) : 0;
        }
      }
      __syncthreads();  // the run, and the values, are there for all
      for (int d = 0; d < kRun; ++d) {
        const float x = shared.query[row][d];
#pragma unroll
        for (int j = 0; j < kKeysEach; ++j) score[j] = fmaf(x, shared.key[part + j * kOfQuery][d], score[j]);
      }
    }
    // Of the tile, those that this query sees.
    const int64_t from = seen_from(query) - s0;
    const int64_t to = position_of(query) + 1 - s0;
    const int begin = from < 0 ? 0 : from > kKeys ? kKeys : static_cast<int>(from);
    const int stop = to < 0 ? 0 : to > kKeys ? kKeys : static_cast<int>(to);
    float most = largest;
#pragma unroll
    for (int j = 0; j < kKeysEach; ++j) {
      const int key = part + j * kOfQuery;
      if (key >= begin && key < stop) most = fmaxf(most, score[j]);
    }
    most = largest_of_query(most);
    const float kept = most == largest ? 1.0f : expf(largest - most);
    float tile = 0;
#pragma unroll
    for (int j = 0; j < kKeysEach; ++j) {
      const int key = part + j * kOfQuery;
      score[j] = key >= begin && key < stop ? expf(score[j] - most) : 0.0f;
      tile += score[j];
    }
    total = total * kept + sum_of_query(tile);
    largest = most;
#pragma unroll
    for (int j = 0; j < kKeysEach; ++j) shared.share[row][part + j * kOfQuery] = score[j];
    __syncwarp();  // a query's shares are written, and read, by one warp
#pragma unroll
    for (int c = 0; c < kColumnsEach; ++c) sum[c] *= kept;
    for (int key = begin; key < stop; ++key) {
      const float share = shared.share[row][key];
#pragma unroll
      for (int c = 0; c < kColumnsEach; ++c)
        sum[c] = fmaf(share, shared.value[key][part + c * kOfQuery], sum[c]);
    }
  }
  if (first + row >= a.queries) return;
#pragma unroll
  for (int c = 0; c < kColumnsEach; ++c) {
    const int64_t col = col0 + part + c * kOfQuery;
    if (col < a.value_dim)
      store_value(p.y.dtype, p.y.data,
                  (sequence * a.queries + query) * p.y.row_stride + head * a.value_dim + col,
                  {true, sum[c] / total, 0});
  }
}

}  // namespace

void attend_cuda(void* stream, const ConstMatrix& q, const ConstMatrix& k, const ConstMatrix& v,
                 const Attention& a, const Matrix& y) {
  if (y.rows == 0 || y.cols == 0) return;
  const int64_t query_tiles = (a.queries + kQueries - 1) / kQueries;
  const int64_t column_tiles = (a.value_dim + kColumns - 1) / kColumns;
  const int64_t tasks = a.sequences * a.heads * query_tiles * column_tiles;
  if (tasks > 0x7fffffff)
    fail(ErrorCode::unsupported, "attention of ", tasks, " tiles, at most 2^31 - 1 expected");
  simt::launch(attend_queries, dim3(static_cast<unsigned>(tasks)), dim3(kThreads), sizeof(AttentionShared),
               static_cast<simt::Stream>(stream), AttentionTask{q, k, v, a, y, query_tiles, column_tiles});
}

}  // namespace quantaria::ops
