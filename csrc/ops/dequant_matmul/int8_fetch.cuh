#pragma once

#include "ops/dequant_matmul/coded_fetch.cuh"
#include "ops/dequant_matmul/int8_rows.cuh"

/// How a block of an integer product brings the columns of both factors into shared memory: as in
/// coded_fetch.cuh, each thread works out once which pieces are its own.
namespace quantaria::ops {

/// Bytes from one row of activations to the next one: 32 beyond whole banks, so that the four rows that a
/// half warp reads at once, 32 bytes each, meet all of them.
constexpr int int8_pitch(int step) { return step + 32; }

/// Words from one row of codes to the next one, for the same reason; Bits 0 leaves room for any width.
constexpr int int8_code_pitch(int runs, int bits) { return bits == 4 ? code_pitch(runs * 4) : runs * 8 + 8; }

template <class Tile, int Bits>
struct Int8Stage {
  alignas(16) int8_t x[Tile::kTileRows][int8_pitch(Tile::kStep)];
  alignas(16) uint32_t codes[Tile::kTileCols][int8_code_pitch(Tile::kRuns, Bits)];
  float x_scales[Tile::kRuns][Tile::kTileRows];
  int32_t x_sums[Tile::kRuns][Tile::kTileRows];
  float scales[Tile::kRuns][Tile::kTileCols];
  int32_t zeros[Tile::kRuns][Tile::kTileCols];
};

struct Int8Product {
  Int8Rows rows;
  CodedRows weight;
  const CodedSource* sources;
  ProductTiles tiles;
  OutlierColumns outliers;
  bool vectors;      // whether runs of codes follow each other and are copied in CodePieces
  int row_words;     // of codes; the last group's padding may reach steps beyond them
  CodedSteps steps;  // of activations, padding included
  Epilogue epilogue;
};

/// A thread's int8 activations.
template <class Tile>
struct Int8Pieces {
  static constexpr int kBytes = 16;
  using Pieces = ThreadPieces<Tile::kTileRows, Tile::kStep / kBytes, Tile::kThreads>;
  static constexpr int kNowhere = 0x7fffffff;

  const int8_t* from[Pieces::kCount];
  int column[Pieces::kCount];  // of the step; of rows that are not there beyond any

  __device__ __forceinline__ Int8Pieces(const Int8Rows& x, const int64_t (&rows)[Tile::kTileRows]) {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      const int64_t row = rows[Pieces::row(j)];
      const int k = Pieces::across(j) * kBytes;
      from[j] = x.codes + (row < 0 ? 0 : row) * x.row_bytes + k;
      column[j] = row < 0 ? kNowhere : k;
    }
  }

  template <class Stage>
  __device__ __forceinline__ void fetch(Stage& stage, int columns) const {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j)
      simt::cp_async<kBytes>(&stage.x[Pieces::row(j)][Pieces::across(j) * kBytes], from[j],
                             column[j] < columns);
  }

  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) from[j] += Tile::kStep;
  }
};

/// The scale and the sum of codes of a row of activations that a thread brings for each group. Rows that are
/// not there have the first one's: nobody looks at their sums.
template <class Tile>
struct Int8Constants {
  using Pieces = ThreadPieces<Tile::kRuns, Tile::kTileRows, Tile::kThreads>;
  static_assert(Pieces::kCount == 1);

  int64_t first;  // in the first group that this thread would bring

  __device__ __forceinline__ Int8Constants(const Int8Rows& x, const int64_t (&rows)[Tile::kTileRows]) {
    const int64_t row = rows[Pieces::across(0)];
    first = (row < 0 ? 0 : row) + Pieces::row(0) * x.rows;
  }

  template <class Stage>
  __device__ __forceinline__ void fetch(Stage& stage, const Int8Rows& x, int group, int groups,
                                        bool with_sums) const {
    const int g = Pieces::row(0);
    if (!Pieces::has(0) || g >= groups) return;
    const int64_t at = first + group * x.rows;
    simt::cp_async<4>(&stage.x_scales[g][Pieces::across(0)], x.scales + at);
    if (with_sums) simt::cp_async<4>(&stage.x_sums[g][Pieces::across(0)], x.sums + at);
  }
};

/// All that a thread brings.
template <class Tile, int Bits>
class Int8Fetch {
 public:
  using Stage = Int8Stage<Tile, Bits>;

  __device__ __forceinline__ Int8Fetch(const Int8Product& p, Stage (&stages)[Tile::kStages],
                                       const TileFactors<Tile>& factors)
      : p_(p),
        stages_(stages),
        factors_(factors),
        x_(p.rows, factors.left),
        x_constants_(p.rows, factors.left),
        codes_(p.weight.matrix, p.tiles, factors, 0),
        constants_(p.weight.matrix, p.tiles, p.steps, true, factors, 0) {}

  /// Begins to bring the next step's columns, if there are any, into the next stage.
  __device__ __forceinline__ void begin_step() {
    if (step_ < p_.steps.steps) {
      Stage& stage = stages_[to_];
      const bool last = step_ + 1 == p_.steps.steps;
      const int groups = constants_.groups(p_.steps);
      x_.fetch(stage, last ? p_.steps.last_columns : Tile::kStep);
      if (Bits != 0 && p_.vectors)
        codes_.fetch(stage, p_.row_words - step_ * kRowWords);
      else
        fetch_words(stage);
      constants_.fetch(stage.scales, constants_.scales, groups);
      if (constants_.zeros) constants_.fetch(stage.zeros, constants_.zeros, groups);
      x_constants_.fetch(stage, p_.rows, constants_.group, groups, constants_.zeros != nullptr);
      x_.move_on();
      codes_.move_on();
      constants_.move_on(p_.steps);
      ++step_;
      to_ = to_ + 1 == Tile::kStages ? 0 : to_ + 1;
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  }

 private:
  using Codes = CodePieces<Tile, Bits == 0 ? 8 : Bits>;
  static constexpr int kRowWords = Tile::kRuns * Bits;

  /// Codes word by word, of any width, wherever groups begin: those of activations are padded to whole runs.
  __device__ __forceinline__ void fetch_words(Stage& stage) const {
    const CodedMatrix& m = p_.weight.matrix;
    const int bits = Bits == 0 ? m.bits : Bits;  // words of a run
    const int64_t row_words = m.row_bits / 32;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * Tile::kRuns * bits;
         i += Tile::kThreads) {
      const int word = i % bits;
      const int run = i / bits % Tile::kRuns;
      const int n = i / bits / Tile::kRuns;
      const int q = step_ * Tile::kRuns + run;
      const int64_t col = q / p_.steps.group_runs * p_.rows.group + q % p_.steps.group_runs * kInt8Run;
      const int64_t at = col * bits / 32 + word;
      const TileColumn column = column_of<Tile::kPairRun>(p_.tiles, n);
      const int64_t row = row_within(m, factors_.place.col0 + column.col);
      const bool there = q < p_.steps.runs && at < row_words;
      simt::cp_async<4>(&stage.codes[n][run * bits + word],
                        factors_.right[column.factor].words + row * row_words + (there ? at : 0), there);
    }
  }

  const Int8Product& p_;
  Stage (&stages_)[Tile::kStages];
  const TileFactors<Tile>& factors_;
  int step_ = 0;
  int to_ = 0;  // the next stage
  Int8Pieces<Tile> x_;
  Int8Constants<Tile> x_constants_;
  Codes codes_;
  ConstantPieces<Tile> constants_;
};

}  // namespace quantaria::ops
