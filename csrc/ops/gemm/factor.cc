#include "ops/gemm/factor.h"

#include <algorithm>
#include <optional>

#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

// Rows that share a decoded panel, at most: enough to make decoding cheap, few enough for the packed rows of
// a common depth and their sums to stay in the caches. More are spread evenly over blocks.
constexpr int64_t kBlockRows = 288;

// Packed rows in memory at a time. Larger products go through in parts.
constexpr int64_t kPackedBytes = int64_t{32} << 20;

/// Rows [first, first + count) of a product.
struct Block {
  const Product* product;
  int64_t first;
  RowPanels rows;
  std::optional<RowPanels> other_rows;  // of the second factor, where it wants another form
  int64_t panels;

  int64_t bytes() const { return rows.bytes() + (other_rows ? other_rows->bytes() : 0); }

  int64_t wanted_rows(int64_t panel) const {
    if (!product->upper) return rows.rows();
    const int64_t end = (panel + 1) * product->factors[0]->panel_columns() - first;  // rows past it lie below
    for (int64_t tile = 0; tile < rows.tiles(); ++tile)
      if (rows.first_row(tile) >= end) return rows.first_row(tile);
    return rows.rows();
  }
};

Rows part_of_rows(const Rows& rows, int64_t first, int64_t count) {
  Rows part = rows;
  part.count = count;
  if (rows.index != nullptr)
    part.index += first;
  else
    part.matrix.data += first * rows.matrix.row_stride * size_of(rows.matrix.dtype);
  if (rows.index == nullptr && rows.scales != nullptr) part.scales += first;
  return part;
}

void multiply_block(const Block& block, int64_t panel) {
  const Product& product = *block.product;
  const int64_t rows = block.wanted_rows(panel);
  if (rows == 0) return;
  const int64_t width = product.factors[0]->panel_columns();
  float* const c = thread_buffer<float>(Slot::sums, 2 * rows * width);
  Piece piece{block.first, rows, panel * width, 0, {}, width};
  piece.columns = std::min(width, product.factors[0]->columns() - piece.column);
  for (int i = 0; i < 2 && product.factors[i] != nullptr; ++i) {
    float* const to = c + i * rows * width;
    product.factors[i]->multiply(i == 1 && block.other_rows ? *block.other_rows : block.rows, rows, panel,
                                 to);
    piece.c[i] = to;
  }
  product.store(piece);
}

Block make_block(const Product& product, int64_t first, int64_t count) {
  const Factor& factor = *product.factors[0];
  const Rows rows = part_of_rows(product.rows, first, count);
  const RowFormat format = factor.row_format(count);
  Block block{&product,
              first,
              RowPanels(format, rows),
              {},
              (factor.columns() + factor.panel_columns() - 1) / factor.panel_columns()};
  if (const Factor* const second = product.factors[1]; second != nullptr)
    if (const RowFormat other = second->row_format(count); other != format)
      block.other_rows.emplace(other, rows);
  return block;
}

/// Item i of lists that lie one behind the other: which list, and which item in it.
struct Place {
  size_t list;
  int64_t item;
};
Place place_of(const std::vector<int64_t>& starts, int64_t i) {
  const auto after = std::upper_bound(starts.begin(), starts.end(), i);
  const auto list = static_cast<size_t>(after - starts.begin()) - 1;
  return {list, i - starts[list]};
}

/// Where runs of panels begin that a thread takes at a time: memory is read fastest in long strides of one
/// thread, but whoever takes the last run keeps the others waiting, so they become shorter towards the end.
/// What is computed does not depend on it.
std::vector<int64_t> runs_of(int64_t panels, int threads) {
  constexpr int64_t kLongest = 8;
  std::vector<int64_t> starts{0};
  while (starts.back() < panels)
    starts.push_back(starts.back() +
                     std::clamp<int64_t>((panels - starts.back()) / (4 * threads), 1, kLongest));
  return starts;
}

void run_blocks(ThreadPool& pool, std::vector<Block>& blocks) {
  std::vector<int64_t> tiles{0};
  std::vector<int64_t> panels{0};
  for (const Block& block : blocks) {
    tiles.push_back(tiles.back() + block.rows.tiles());
    tiles.push_back(tiles.back() + (block.other_rows ? block.other_rows->tiles() : 0));
    panels.push_back(panels.back() + block.panels);
  }
  pool.parallel_for(tiles.back(), [&](int64_t i) {
    const Place place = place_of(tiles, i);
    Block& block = blocks[place.list / 2];
    (place.list % 2 == 0 ? block.rows : *block.other_rows).pack(place.item);
  });
  const std::vector<int64_t> runs = runs_of(panels.back(), pool.threads());
  pool.parallel_for(static_cast<int64_t>(runs.size()) - 1, [&](int64_t run) {
    for (int64_t i = runs[static_cast<size_t>(run)]; i < runs[static_cast<size_t>(run) + 1]; ++i) {
      const Place place = place_of(panels, i);
      multiply_block(blocks[place.list], place.item);
    }
  });
  blocks.clear();
}

}  // namespace

void multiply_all(ThreadPool& pool, const std::vector<Product>& products) {
  std::vector<Block> blocks;
  int64_t bytes = 0;
  for (const Product& product : products) {
    const int64_t count = product.rows.count;
    if (count == 0) continue;
    const int64_t parts = (count + kBlockRows - 1) / kBlockRows;
    const int64_t rows = (count + parts - 1) / parts;
    for (int64_t first = 0; first < count; first += rows) {
      blocks.push_back(make_block(product, first, std::min(rows, count - first)));
      bytes += blocks.back().bytes();
      if (bytes < kPackedBytes) continue;
      run_blocks(pool, blocks);
      bytes = 0;
    }
  }
  run_blocks(pool, blocks);
}

void multiply_panel(const FloatTiles& tiles, const RowPanels& a, int64_t rows,
                    const std::function<const void*(int64_t, int64_t)>& decode, float* c) {
  // A block of 64 KiB: it stays in the second-level cache while the tiles of rows pass over it.
  constexpr int64_t kWords = 16384;
  const int64_t block = std::max<int64_t>(1, kWords / tiles.columns);
  if (a.steps() == 0) std::fill_n(c, rows * tiles.columns, 0.0f);
  for (int64_t first = 0; first < a.steps(); first += block) {
    const int64_t steps = std::min(block, a.steps() - first);
    const void* const b = decode(first, steps);
    for (int64_t tile = 0; tile < a.tiles() && a.first_row(tile) < rows; ++tile) {
      const int tile_rows = a.rows_of(tile);
      tiles.multiply[tile_rows - 1](steps, a.words(tile) + first * tile_rows * 4, b,
                                    c + a.first_row(tile) * tiles.columns, first > 0);
    }
  }
}

}  // namespace quantaria::ops
