#pragma once

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/dequant_matmul/int8_rows.cuh"
#include "ops/gemm/epilogue.cuh"
#include "ops/gemm/product_tiles.cuh"
#include "ops/moe/experts_cuda.h"

/// From experts to launches of the product loops.
namespace quantaria::ops {

/// How rows are shared between experts, and what the host knows of it: how many there are in all.
struct GroupedRows {
  int64_t rows;
  int64_t experts;
  const int32_t* offsets;  // [experts + 1] in device memory, or null:
  const int32_t* counts;   // [experts]
  std::byte* verdict;      // refuses element 0 if the counts do not add up; null: they do
};

/// Row tiles and workspaces of one layer.
class GroupedProducts {
 public:
  GroupedProducts(simt::Stream stream, const GroupedRows& rows, Operand operand, const Allocate& allocate)
      : stream_(stream), rows_(rows), operand_(operand), allocate_(allocate) {}

  /// c[result_order[r]] = x[left_order[r] / share] w_e for each row r of expert e. With a second factor per
  /// expert, of the same kind as the first one, silu(x w_e) * (x second_e).
  void multiply(const ConstMatrix& x, const std::vector<ExpertMatrix>& factors,
                const std::vector<ExpertMatrix>* second, const ProductTiles& orders, const Matrix& c);

  /// Sets the verdict, also where there is nothing to multiply.
  void check_counts() { tiles_of(kDenseTileRows); }

  /// Uninitialised, for the time of the layer.
  std::byte* room(int64_t bytes);

 private:
  const RowTile* tiles_of(int tile_rows);
  ProductTiles with_tiles(const ProductTiles& orders, int tile_rows);
  template <class Source>
  const Source* to_device(const std::vector<Source>& sources);
  void multiply_kind(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                     const ProductTiles& orders, const Matrix& c);
  void multiply_dense(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                      const ConstMatrix& like, const ProductTiles& orders, const Matrix& c);
  void multiply_coded(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                      const DeviceWeight& like, const ProductTiles& orders, const Matrix& c);
  const Int8Rows& quantized(const ConstMatrix& x, const CodedMatrix& weight);
  ConstMatrix rows_in_group_order(const ConstMatrix& x, const std::vector<const ExpertMatrix*>& factors,
                                  const ProductTiles& orders, int64_t count);
  int64_t rows_each() const { return (rows_.rows + rows_.experts - 1) / std::max<int64_t>(1, rows_.experts); }

  simt::Stream stream_;
  GroupedRows rows_;
  Operand operand_;
  const Allocate& allocate_;
  std::vector<std::shared_ptr<Storage>> memory_;
  std::map<int, const RowTile*> tiles_;
  // Rows by where they lie, groups, and whether their columns take turns.
  std::map<std::tuple<const std::byte*, int64_t, bool>, Int8Rows> quantized_;
};

/// Whether one launch takes both, for different rows: all is the same but where they lie.
bool same_kind(const ExpertMatrix& a, const ExpertMatrix& b);

/// Whether one launch takes both for the same rows, which have to be in the order of both.
bool same_pair(const ExpertMatrix& gate, const ExpertMatrix& up);

}  // namespace quantaria::ops
