#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cuda/verdict.h"
#include "ops/dequant_matmul/coded_call.cuh"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "ops/dequant_matmul/group_order_cuda.h"
#include "ops/gemm/dense_product.cuh"
#include "ops/moe/grouped_product.cuh"

namespace quantaria::ops {
namespace {

constexpr unsigned kAll = ~0u;

struct TilePlan {
  const int32_t* offsets;  // or null
  const int32_t* counts;
  int32_t experts;
  int32_t rows;
  int32_t tile_rows;
  RowTile* tiles;
  int64_t bound;           // of tiles
  cuda::Verdict* verdict;  // or null
};

/// One warp, 32 experts at a time: where an expert's tiles begin is the sum of those before it. Whatever the
/// counts, tiles stay inside the rows, and within their bound.
__global__ void __launch_bounds__(32) plan_tiles(TilePlan p) {
  const int lane = static_cast<int>(threadIdx.x);
  int64_t first_row = 0;
  int64_t first_tile = 0;
  bool wrong = false;
  for (int32_t e0 = 0; e0 < p.experts; e0 += 32) {
    const int32_t e = e0 + lane;
    int64_t count = 0;
    if (e < p.experts)
      count = p.offsets ? int64_t{simt::load(p.offsets + e + 1)} - simt::load(p.offsets + e)
                        : simt::load(p.counts + e);
    wrong = wrong || count < 0;
    if (count < 0) count = 0;
    int64_t row_end = count;
    for (int apart = 1; apart < 32; apart *= 2) {
      const int64_t left = __shfl_up_sync(kAll, row_end, static_cast<unsigned>(apart));
      if (lane >= apart) row_end += left;
    }
    row_end += first_row;
    const int64_t end = row_end < p.rows ? row_end : p.rows;
    const int64_t begin = row_end - count < p.rows ? row_end - count : p.rows;
    const int64_t own = (end - begin + p.tile_rows - 1) / p.tile_rows;
    int64_t tile_end = own;
    for (int apart = 1; apart < 32; apart *= 2) {
      const int64_t left = __shfl_up_sync(kAll, tile_end, static_cast<unsigned>(apart));
      if (lane >= apart) tile_end += left;
    }
    tile_end += first_tile;
    for (int64_t i = 0; i < own; ++i) {
      const int64_t row = begin + i * p.tile_rows;
      const int64_t stop = row + p.tile_rows < end ? row + p.tile_rows : end;
      simt::store(p.tiles + tile_end - own + i,
                  RowTile{e, static_cast<int32_t>(row), static_cast<int32_t>(stop)});
    }
    first_row = __shfl_sync(kAll, row_end, 31);
    first_tile = __shfl_sync(kAll, tile_end, 31);
  }
  for (int64_t i = first_tile + lane; i < p.bound; i += 32) simt::store(p.tiles + i, RowTile{-1, 0, 0});
  wrong = __any_sync(kAll, wrong) || first_row != p.rows;
  if (wrong && p.verdict && lane == 0) cuda::refuse(p.verdict, 0);
}

/// What travels as the argument of a launch, which has room for 32 KB: no copy from host memory, and nothing
/// to wait for.
constexpr int kWords = 2048;
constexpr int kPutThreads = 256;
struct Words {
  uint64_t word[kWords];
};

__global__ void __launch_bounds__(kPutThreads)
    put_words(const __grid_constant__ Words words, int count, uint64_t* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kPutThreads) simt::store(to + i, words.word[i]);
}

bool same_strides(const ConstMatrix& a, const ConstMatrix& b) {
  return a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols && a.row_stride == b.row_stride &&
         a.col_stride == b.col_stride;
}

bool same_codes(const DeviceWeight& a, const DeviceWeight& b) {
  const CodedMatrix& m = a.matrix;
  const CodedMatrix& n = b.matrix;
  const bool same = m.out == n.out && m.in == n.in && m.row_bits == n.row_bits && m.bits == n.bits &&
                    m.first == n.first && m.table_of_integers == n.table_of_integers && m.flat == n.flat &&
                    m.row_step == n.row_step && m.group == n.group && m.form == n.form &&
                    m.divisor == n.divisor && !m.zeros == !n.zeros && m.far_zeros == n.far_zeros &&
                    !m.index == !n.index && !m.row_divisors == !n.row_divisors && !a.order == !b.order;
  const size_t entries = m.bits <= 8 ? size_t{1} << m.bits : 0;
  return same && std::memcmp(a.table.values, b.table.values, entries * sizeof(float)) == 0;
}

bool aligned(const void* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; }

}  // namespace

bool same_kind(const ExpertMatrix& a, const ExpertMatrix& b) {
  if (!a.coded != !b.coded) return false;
  return a.coded ? same_codes(*a.coded, *b.coded)
                 : same_strides(a.dense, b.dense) && aligned(a.dense.data) == aligned(b.dense.data);
}

bool same_pair(const ExpertMatrix& gate, const ExpertMatrix& up) {
  if (!same_kind(gate, up)) return false;
  return !gate.coded || !gate.coded->order || *gate.coded->order == *up.coded->order;
}

std::byte* GroupedProducts::room(int64_t bytes) {
  memory_.push_back(allocate_(bytes));
  return memory_.back()->data();
}

const RowTile* GroupedProducts::tiles_of(int tile_rows) {
  const RowTile*& tiles = tiles_[tile_rows];
  if (tiles) return tiles;
  // Each expert with rows has at most one tile that is not full.
  const int64_t used = std::min(rows_.experts, rows_.rows);
  const int64_t bound = (rows_.rows - used) / tile_rows + used;
  auto* const made = reinterpret_cast<RowTile*>(room(bound * static_cast<int64_t>(sizeof(RowTile))));
  simt::launch(plan_tiles, dim3(1), dim3(32), 0, stream_,
               TilePlan{rows_.offsets, rows_.counts, static_cast<int32_t>(rows_.experts),
                        static_cast<int32_t>(rows_.rows), tile_rows, made, bound,
                        reinterpret_cast<cuda::Verdict*>(rows_.verdict)});
  return tiles = made;
}

ProductTiles GroupedProducts::with_tiles(const ProductTiles& orders, int tile_rows) {
  ProductTiles tiles = orders;
  tiles.tiles = tiles_of(tile_rows);
  const int64_t used = std::min(rows_.experts, rows_.rows);
  tiles.row_tiles = (rows_.rows - used) / tile_rows + used;
  return tiles;
}

template <class Source>
const Source* GroupedProducts::to_device(const std::vector<Source>& sources) {
  static_assert(sizeof(Source) % sizeof(uint64_t) == 0);
  const auto count = static_cast<int64_t>(sources.size() * sizeof(Source) / sizeof(uint64_t));
  auto* const to = reinterpret_cast<uint64_t*>(room(count * 8));
  for (int64_t first = 0; first < count; first += kWords) {
    const auto part = static_cast<int>(std::min<int64_t>(kWords, count - first));
    Words words{};
    std::memcpy(words.word, reinterpret_cast<const std::byte*>(sources.data()) + first * 8,
                static_cast<size_t>(part) * 8);
    simt::launch(put_words, dim3(1), dim3(kPutThreads), 0, stream_, words, part, to + first);
  }
  return reinterpret_cast<const Source*>(to);
}

/// Each row once, whichever experts read it, and once for all weights of one group length and order of
/// columns.
const Int8Rows& GroupedProducts::quantized(const ConstMatrix& x, const CodedMatrix& weight) {
  const auto [known, is_new] = quantized_.try_emplace({x.data, weight.group, columns_in_turns(weight.bits)});
  if (is_new) {
    known->second = int8_rows_in(room(int8_rows_bytes(x.rows, weight)), x.rows, weight);
    quantize_int8_rows(stream_, x, known->second);
  }
  return known->second;
}

/// The rows of all experts one after the other, the columns of each in the order of its expert's weight.
ConstMatrix GroupedProducts::rows_in_group_order(const ConstMatrix& x,
                                                 const std::vector<const ExpertMatrix*>& factors,
                                                 const ProductTiles& orders, int64_t count) {
  if (size_of(x.dtype) != 2)
    fail(ErrorCode::dtype, "x: ", name_of(x.dtype), " for weights in the order of tensor cores");
  std::vector<const int32_t*> columns;
  for (const ExpertMatrix* factor : factors)
    columns.push_back(factor ? factor->coded->left_columns : nullptr);
  std::byte* const rows = room(rows_.rows * count * 2);
  order_group_activations_cuda(stream_, x, with_tiles(orders, coded_tile_rows(rows_each())),
                               to_device(columns), orders.paired ? 2 : 1, count,
                               reinterpret_cast<uint16_t*>(rows));
  return {rows, x.dtype, rows_.rows, count, count, 1};
}

void GroupedProducts::multiply_kind(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                                    const ProductTiles& orders, const Matrix& c) {
  const ExpertMatrix& like = **std::find_if(factors.begin(), factors.end(), [](auto* f) { return f; });
  if (!like.coded) return multiply_dense(x, factors, like.dense, orders, c);
  if (!like.coded->order) return multiply_coded(x, factors, *like.coded, orders, c);
  const ConstMatrix rows = rows_in_group_order(x, factors, orders, like.coded->matrix.in);
  ProductTiles in_place = orders;
  in_place.left_order = nullptr;
  in_place.share = 1;
  multiply_coded(rows, factors, *like.coded, in_place, c);
}

void GroupedProducts::multiply_dense(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                                     const ConstMatrix& like, const ProductTiles& orders, const Matrix& c) {
  std::vector<DenseSource> sources;
  for (const ExpertMatrix* factor : factors) sources.push_back({factor ? factor->dense.data : nullptr});
  const bool tensor_cores = dense_on_tensor_cores(x, like);
  const DenseCall call{stream_,
                       x,
                       like,
                       to_device(sources),
                       aligned(like.data),
                       with_tiles(orders, tensor_cores ? kDenseTileRows : kFmaTileRows),
                       epilogue_of(nullptr, c)};
  tensor_cores ? launch_dense_product(call) : launch_dense_fma_product(call);
}

void GroupedProducts::multiply_coded(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                                     const DeviceWeight& like, const ProductTiles& orders, const Matrix& c) {
  const Epilogue epilogue = epilogue_of(nullptr, c);
  std::vector<CodedSource> sources;
  for (const ExpertMatrix* factor : factors)
    sources.push_back(factor ? static_cast<const CodedSource&>(factor->coded->matrix) : CodedSource{});
  if (operand_ == Operand::int8) {
    const int tile_rows = int8_tile_rows(rows_each());
    return launch_int8_product({stream_, quantized(x, like.matrix), nullptr, like, to_device(sources),
                                with_tiles(orders, tile_rows), epilogue, tile_rows});
  }
  DeviceWeight weight = like;
  const bool tensor_cores = on_tensor_cores(x.dtype, weight.matrix, operand_ == Operand::bfloat16) &&
                            (x.col_stride == 1 || x.cols == 1);
  const int tile_rows = tensor_cores ? coded_tile_rows(rows_each()) : kFmaTileRows;
  const bool scaled = tensor_cores && x.dtype == DType::float16 && !weight.matrix.table_of_integers;
  const float unscale = scaled ? fill_float16_range(weight) : 1;
  const CodedCall call{stream_, x,  weight,   unscale,  to_device(sources), with_tiles(orders, tile_rows),
                       1,       {}, epilogue, tile_rows};
  if (!tensor_cores) return launch_coded_fma_product(call);
  weight.matrix.table_of_integers ? launch_integer_product(call) : launch_table_product(call);
}

void GroupedProducts::multiply(const ConstMatrix& x, const std::vector<ExpertMatrix>& factors,
                               const std::vector<ExpertMatrix>* second, const ProductTiles& orders,
                               const Matrix& c) {
  if (rows_.rows == 0 || c.cols == 0) return;
  ProductTiles tiles = orders;
  tiles.paired = second != nullptr;
  std::vector<bool> done(factors.size());
  for (size_t first = 0; first < factors.size(); ++first) {
    if (done[first]) continue;
    std::vector<const ExpertMatrix*> alike;
    for (size_t e = 0; e < factors.size(); ++e) {
      const bool taken = !done[e] && same_kind(factors[first], factors[e]);
      if (taken) done[e] = true;
      alike.push_back(taken ? &factors[e] : nullptr);
      if (second) alike.push_back(taken ? &(*second)[e] : nullptr);
    }
    multiply_kind(x, alike, tiles, c);
  }
}

}  // namespace quantaria::ops
