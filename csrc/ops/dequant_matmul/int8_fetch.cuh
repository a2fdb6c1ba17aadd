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

/// How columns are grouped.
struct OneGroup {};    // all are one
struct StepGroups {};  // each step is one
struct RunGroups {};   // they end after any run

/// What a step's groups need: scales and zero points of the weight's rows, scales and sums of those of
/// activations.
template <class Tile, class Groups>
struct Int8Constants {
  float scales[Tile::kRuns][Tile::kTileCols];
  int32_t zeros[Tile::kRuns][Tile::kTileCols];
  float x_scales[Tile::kRuns][Tile::kTileRows];
  int32_t x_sums[Tile::kRuns][Tile::kTileRows];

  __device__ const float* scale(int group, int col) const { return &scales[group][col]; }
  __device__ const int32_t* zero(int group, int col) const { return &zeros[group][col]; }
  __device__ float x_scale(int group, int row) const { return x_scales[group][row]; }
  __device__ int32_t x_sum(int group, int row) const { return x_sums[group][row]; }
};
template <class Tile>
struct Int8Constants<Tile, StepGroups> {
  static constexpr int kAll = Tile::kTileCols + Tile::kTileRows;  // those of activations last
  float scales[kAll];
  int32_t wholes[kAll];

  __device__ const float* scale(int, int col) const { return &scales[col]; }
  __device__ const int32_t* zero(int, int col) const { return &wholes[col]; }
  __device__ float x_scale(int, int row) const { return scales[Tile::kTileCols + row]; }
  __device__ int32_t x_sum(int, int row) const { return wholes[Tile::kTileCols + row]; }
};
template <class Tile>
struct Int8Constants<Tile, OneGroup> {};

template <class Tile, int Bits, class Groups>
struct Int8Stage {
  alignas(16) int8_t x[Tile::kTileRows][Tile::kStep];
  alignas(16) uint32_t codes[Tile::kTileCols][int8_code_bytes(Tile::kStep, Bits) / 4];
  Int8Constants<Tile, Groups> constants;
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

/// A thread's constants of groups. Rows of activations that are not there have the first one's: nobody looks
/// at their sums.
template <class Tile, class Groups>
struct ConstantsOfGroups {
  using Left = ThreadPieces<Tile::kRuns, Tile::kTileRows, Tile::kThreads>;

  ConstantPieces<Tile> right;
  int64_t left;  // in the first group of which this thread would bring a row's

  __device__ __forceinline__ ConstantsOfGroups(const Int8Product& p, const TileFactors<Tile>& factors)
      : right(p.weight.matrix, p.tiles, p.steps, true, factors, 0) {
    const int64_t row = factors.left[Left::across(0)];
    left = (row < 0 ? 0 : row) + Left::row(0) * p.rows.rows;
  }

  __device__ __forceinline__ void fetch(Int8Constants<Tile, Groups>& to, const Int8Product& p) {
    const int groups = right.groups(p.steps);
    right.fetch(to.scales, right.scales, groups);
    if (right.zeros) right.fetch(to.zeros, right.zeros, groups);
#pragma unroll
    for (int j = 0; j < Left::kCount; ++j) {
      const int apart = j * (Tile::kThreads / Tile::kTileRows);
      const int g = Left::row(0) + apart;
      if (!Left::has(j) || g >= groups) continue;
      const int64_t at = left + (right.group + apart) * p.rows.rows;
      simt::cp_async<4>(&to.x_scales[g][Left::across(0)], p.rows.scales + at);
      if (right.zeros) simt::cp_async<4>(&to.x_sums[g][Left::across(0)], p.rows.sums + at);
    }
    right.move_on(p.steps);
  }
};

/// Of one group a step: a thread has one of a row of the weight, or of one of activations.
template <class Tile>
struct ConstantsOfGroups<Tile, StepGroups> {
  const float* scale;
  const int32_t* whole;  // zero point or sum; null: none
  int64_t apart;         // groups
  int place;

  __device__ __forceinline__ ConstantsOfGroups(const Int8Product& p, const TileFactors<Tile>& factors)
      : place(static_cast<int>(threadIdx.x)) {
    const CodedMatrix& m = p.weight.matrix;
    static_assert(Tile::kThreads >= Int8Constants<Tile, StepGroups>::kAll);
    const bool of_weight = place < Tile::kTileCols;
    const TileColumn column = column_of<Tile::kPairRun>(p.tiles, of_weight ? place : 0);
    const CodedSource& source = factors.right[column.factor];
    const int64_t row = factors.left[of_weight || !there() ? 0 : place - Tile::kTileCols];
    const int64_t at = of_weight ? row_within(m, factors.place.col0 + column.col) * m.row_step
                       : row < 0 ? 0
                                 : row;
    scale = (of_weight ? source.floats : p.rows.scales) + at;
    whole = m.zeros ? (of_weight ? source.zeros : p.rows.sums) + at : nullptr;
    apart = of_weight ? 1 : p.rows.rows;
  }
  __device__ __forceinline__ bool there() const { return place < Int8Constants<Tile, StepGroups>::kAll; }

  __device__ __forceinline__ void fetch(Int8Constants<Tile, StepGroups>& to, const Int8Product&) {
    if (!there()) return;
    simt::cp_async<4>(&to.scales[place], scale);
    scale += apart;
    if (!whole) return;
    simt::cp_async<4>(&to.wholes[place], whole);
    whole += apart;
  }
};

template <class Tile>
struct ConstantsOfGroups<Tile, OneGroup> {
  __device__ __forceinline__ ConstantsOfGroups(const Int8Product&, const TileFactors<Tile>&) {}
  __device__ __forceinline__ void fetch(Int8Constants<Tile, OneGroup>&, const Int8Product&) {}
};

/// All that a thread brings.
template <class Tile, int Bits, class Groups>
class Int8Fetch {
 public:
  using Stage = Int8Stage<Tile, Bits, Groups>;

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
      constants_.fetch(stage.constants, p_);
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
  ConstantsOfGroups<Tile, Groups> constants_;
};

}  // namespace quantaria::ops
