#pragma once

#include <type_traits>

#include "ops/dequant_matmul/coded_fetch.cuh"
#include "ops/dequant_matmul/int8_rows.cuh"

/// How a block of an integer product brings the columns of both factors into shared memory: as in
/// coded_fetch.cuh, each thread works out once which pieces are its own.
namespace quantaria::ops {

/// Where 16-byte piece `piece` of `row` lies, of rows of Across pieces without gaps between them: pieces
/// change places by the row, so that the same one of eight rows after each other, which ldmatrix reads at
/// once, meets all banks.
template <int Across>
__device__ __forceinline__ int swapped_piece(int row, int piece) {
  static_assert((Across & (Across - 1)) == 0);
  if constexpr (Across >= 8) return piece ^ (row & 7);
  return piece ^ (row / (8 / Across) & (Across - 1));
}

/// Bytes of a row of codes that a step brings; Bits 0 leaves room for any width.
constexpr int int8_code_bytes(int step, int bits) { return step * (bits == 0 ? 8 : bits) / 8; }

/// What a step's groups need, where its columns are of groups.
template <class Tile>
struct Int8Constants {
  float x_scales[Tile::kRuns][Tile::kTileRows];
  int32_t x_sums[Tile::kRuns][Tile::kTileRows];
  float scales[Tile::kRuns][Tile::kTileCols];
  int32_t zeros[Tile::kRuns][Tile::kTileCols];
};
struct NoConstants {};

template <class Tile, int Bits, bool Grouped>
struct Int8Stage {
  alignas(16) int8_t x[Tile::kTileRows][Tile::kStep];
  alignas(16) uint32_t codes[Tile::kTileCols][int8_code_bytes(Tile::kStep, Bits) / 4];
  std::conditional_t<Grouped, Int8Constants<Tile>, NoConstants> constants;
};

struct Int8Product {
  Int8Rows rows;
  CodedRows weight;
  const CodedSource* sources;
  ProductTiles tiles;
  OutlierColumns outliers;
  bool vectors;      // whether runs of codes follow each other and are copied in 16-byte pieces
  int row_words;     // of codes
  CodedSteps steps;  // of activations, padding included
  Epilogue epilogue;
};

/// A thread's 16-byte pieces of one factor, whose rows have Across of them a step.
template <class Tile, int Rows, int Across>
struct BytePieces {
  static constexpr int kBytes = 16;
  using Pieces = ThreadPieces<Rows, Across, Tile::kThreads>;
  static constexpr int kDown = Tile::kThreads / Across;  // rows at once
  static_assert(Tile::kThreads % Across == 0 && kDown % 8 == 0);

  const int8_t* from[Pieces::kCount];

  /// row_of(r): where row r begins, of rows that are not there any.
  template <class RowOf>
  __device__ __forceinline__ explicit BytePieces(const RowOf& row_of) {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j)
      from[j] = row_of(Pieces::has(j) ? Pieces::row(j) : 0) + Pieces::across(j) * kBytes;
  }

  /// Zeros beyond `bytes` of a row.
  __device__ __forceinline__ void fetch(void* to, int bytes) const {
    const int row = Pieces::row(0);
    const int piece = Pieces::across(0);
    auto* const first =
        static_cast<int8_t*>(to) + (row * Across + swapped_piece<Across>(row, piece)) * kBytes;
    const bool there = piece * kBytes < bytes;
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j)
      if (Pieces::has(j)) simt::cp_async<kBytes>(first + j * kDown * Across * kBytes, from[j], there);
  }

  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) from[j] += Across * kBytes;
  }
};

/// The scales and the sums of codes of a row of activations that a thread brings for each group. Rows that
/// are not there have the first one's: nobody looks at their sums.
template <class Tile>
struct LeftConstants {
  using Pieces = ThreadPieces<Tile::kRuns, Tile::kTileRows, Tile::kThreads>;

  int64_t first;  // in the first group that this thread would bring

  __device__ __forceinline__ LeftConstants(const Int8Rows& x, const int64_t (&rows)[Tile::kTileRows]) {
    const int64_t row = rows[Pieces::across(0)];
    first = (row < 0 ? 0 : row) + Pieces::row(0) * x.rows;
  }

  __device__ __forceinline__ void fetch(Int8Constants<Tile>& to, const Int8Rows& x, int group, int groups,
                                        bool with_sums) const {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      const int apart = j * (Tile::kThreads / Tile::kTileRows);
      const int g = Pieces::row(0) + apart;
      if (!Pieces::has(j) || g >= groups) continue;
      const int64_t at = first + (group + apart) * x.rows;
      simt::cp_async<4>(&to.x_scales[g][Pieces::across(0)], x.scales + at);
      if (with_sums) simt::cp_async<4>(&to.x_sums[g][Pieces::across(0)], x.sums + at);
    }
  }
};

/// A thread's constants of groups.
template <class Tile>
struct GroupConstants {
  LeftConstants<Tile> left;
  ConstantPieces<Tile> right;

  __device__ __forceinline__ GroupConstants(const Int8Product& p, const TileFactors<Tile>& factors)
      : left(p.rows, factors.left), right(p.weight.matrix, p.tiles, p.steps, true, factors, 0) {}

  __device__ __forceinline__ void fetch(Int8Constants<Tile>& to, const Int8Product& p) {
    const int groups = right.groups(p.steps);
    right.fetch(to.scales, right.scales, groups);
    if (right.zeros) right.fetch(to.zeros, right.zeros, groups);
    left.fetch(to, p.rows, right.group, groups, right.zeros != nullptr);
    right.move_on(p.steps);
  }
};
struct NoGroupConstants {
  template <class... Arguments>
  __device__ __forceinline__ explicit NoGroupConstants(const Arguments&...) {}
};

/// All that a thread brings.
template <class Tile, int Bits, bool Grouped>
class Int8Fetch {
 public:
  using Stage = Int8Stage<Tile, Bits, Grouped>;

  __device__ __forceinline__ Int8Fetch(const Int8Product& p, Stage (&stages)[Tile::kStages],
                                       const TileFactors<Tile>& factors)
      : p_(p),
        stages_(stages),
        factors_(factors),
        left_(p.steps.runs * static_cast<int>(kInt8Run)),
        x_([&](int r) {
          return p.rows.codes + (factors.left[r] < 0 ? 0 : factors.left[r] * p.rows.row_bytes);
        }),
        codes_([&](int n) { return reinterpret_cast<const int8_t*>(row_of(n)); }),
        constants_(p, factors) {}

  /// Begins to bring the next step's columns, if there are any, into the next stage.
  __device__ __forceinline__ void begin_step() {
    if (left_ > 0) {
      Stage& stage = stages_[to_];
      x_.fetch(stage.x, left_);
      if (Bits != 0 && p_.vectors)
        codes_.fetch(stage.codes, left_ > Tile::kStep ? kRowBytes : last_code_bytes());
      else
        fetch_words(stage);
      if constexpr (Grouped) constants_.fetch(stage.constants, p_);
      x_.move_on();
      codes_.move_on();
      left_ -= Tile::kStep;
      to_ = to_ + 1 == Tile::kStages ? 0 : to_ + 1;
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  }

 private:
  static constexpr int kRowBytes = int8_code_bytes(Tile::kStep, Bits);

  /// Columns past the last one of the weight have activations of 0, whatever lies there.
  __device__ __forceinline__ int last_code_bytes() const {
    return p_.row_words * 4 - (p_.steps.steps - 1) * kRowBytes;
  }

  __device__ __forceinline__ const uint32_t* row_of(int n) const {
    const TileColumn column = column_of<Tile::kPairRun>(p_.tiles, n);
    const CodedMatrix& m = p_.weight.matrix;
    return factors_.right[column.factor].words +
           row_within(m, factors_.place.col0 + column.col) * (m.row_bits / 32);
  }

  /// Codes word by word, of any width, wherever groups begin: those of activations are padded to whole runs.
  __device__ __forceinline__ void fetch_words(Stage& stage) const {
    const int bits = Bits == 0 ? p_.weight.matrix.bits : Bits;
    const int first_run = p_.steps.runs - left_ / static_cast<int>(kInt8Run);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * Tile::kRuns * bits;
         i += Tile::kThreads) {
      const int word = i % bits;
      const int run = i / bits % Tile::kRuns;
      const int n = i / bits / Tile::kRuns;
      const int q = first_run + run;
      const int64_t col = q / p_.steps.group_runs * p_.rows.group + q % p_.steps.group_runs * kInt8Run;
      const int64_t at = col * bits / 32 + word;
      const bool there = q < p_.steps.runs && at < p_.row_words;
      int to = run * bits + word;
      if constexpr (Bits != 0) to = swapped_piece<kRowBytes / 16>(n, to / 4) * 4 + to % 4;
      simt::cp_async<4>(&stage.codes[n][to], row_of(n) + (there ? at : 0), there);
    }
  }

  const Int8Product& p_;
  Stage (&stages_)[Tile::kStages];
  const TileFactors<Tile>& factors_;
  int left_;    // columns of activations, from the next step on
  int to_ = 0;  // the next stage
  BytePieces<Tile, Tile::kTileRows, Tile::kStep / 16> x_;
  BytePieces<Tile, Tile::kTileCols, kRowBytes / 16> codes_;
  std::conditional_t<Grouped, GroupConstants<Tile>, NoGroupConstants> constants_;
};

}  // namespace quantaria::ops
