#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/thread_pool.h"
#include "ops/gemm/row_panels.h"

namespace quantaria::ops {

/// The right factor of a product, [depth, columns]: a dense matrix, or a quantized weight that is decoded on
/// the way. Columns are worked on in panels; a panel's kernels decide how the left factor is packed.
class Factor {
 public:
  virtual ~Factor() = default;

  virtual int64_t depth() const = 0;
  virtual int64_t columns() const = 0;
  virtual int panel_columns() const = 0;

  /// The left factor's form for that many rows.
  virtual RowFormat row_format(int64_t rows) const = 0;

  /// c[r][0 .. panel_columns) = the first `rows` rows of a times the panel's columns. What lies past
  /// columns() is unspecified. `rows` is a.rows(), or ends a tile of a.
  virtual void multiply(const RowPanels& a, int64_t rows, int64_t panel, float* c) const = 0;
};

/// A finished piece of a product: rows [row, row + rows) of the left factor (in its own numbering), columns
/// [column, column + columns) of each factor.
struct Piece {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
  float* c[2];     // of the first and second factor; the receiver may change them
  int64_t stride;  // of rows in c
};

/// Rows times one factor, or times two of one shape whose results belong together (gate and up).
struct Product {
  Rows rows;
  const Factor* factors[2] = {};
  std::function<void(const Piece&)> store;  // called from several threads, once for each piece
  bool upper = false;                       // only what lies on or above the diagonal is wanted
};

/// Runs products that have nothing to do with each other, all pieces in parallel. Where they are cut depends
/// on shapes alone. Each factor is decoded once for a few hundred rows.
void multiply_all(ThreadPool& pool, const std::vector<Product>& products);

/// a times the panel of b's words in blocks of steps: decode(first step, steps) gives the words of one block,
/// [steps][panel columns].
void multiply_panel(const FloatTiles& tiles, const RowPanels& a, int64_t rows,
                    const std::function<const void*(int64_t, int64_t)>& decode, float* c);

}  // namespace quantaria::ops
