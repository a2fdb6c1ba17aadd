#pragma once

#include "ops/dequant_matmul/coded_call.cuh"
#include "ops/dequant_matmul/coded_steps.cuh"
#include "ops/dequant_matmul/column_splits.cuh"
#include "ops/dequant_matmul/decoders.cuh"
#include "ops/gemm/thread_pieces.cuh"

/// How a block brings the columns of both factors into shared memory, a step at a time. With few rows a
/// multiprocessor could issue too few instructions to keep up with memory, were each step to find its places
/// anew: each thread works out once which pieces are its own, and a step moves on by constants and asks only
/// where the columns end.
namespace quantaria::ops {

/// Words from one row of codes to the next one: an odd number of 16-byte pieces, so that the eight rows that
/// a warp reads at once begin in different banks.
constexpr int code_pitch(int words) {
  const int pieces = (words + 3) / 4;
  return (pieces + (pieces % 2 == 0 ? 1 : 0)) * 4;
}

/// One stage. Runs of 32 activations are 64 bytes; those of odd rows change places in pairs, so that the
/// eight lanes that read 16 bytes at once, of two neighbouring rows, meet all banks.
template <class Tile, int Bits>
struct CodedStage {
  static constexpr int kRowWords = Tile::kRuns * Bits;
  alignas(16) uint16_t x[Tile::kTileRows][Tile::kStep];
  alignas(16) uint32_t codes[Tile::kTileCols][code_pitch(kRowWords)];
  float scales[Tile::kRuns][Tile::kTileCols];
  int32_t zeros[Tile::kRuns][Tile::kTileCols];
};

template <class Tile, class Decoder>
struct CodedShared {
  CodedStage<Tile, Decoder::kBits> stage[Tile::kStages];
  typename Decoder::Shared decoder;
  CodeTable table;  // its map of nested scales
  TileFactors<Tile> factors;
  bool unfinished;  // of blocks that share the tile's columns, some are still to come
};

struct CodedProduct {
  const uint16_t* x;  // [x_rows, in], unit stride along columns
  int64_t x_rows;
  int64_t x_stride;
  CodedRows weight;
  const CodedSource* sources;
  ProductTiles tiles;
  float unscale;       // what the table was multiplied by, undone
  bool x_vectors;      // rows begin at multiples of 16 bytes and hold whole vectors
  bool code_pieces;    // rows of codes are whole CodePieces
  bool scales_copied;  // as they are stored: nothing is left to be worked out
  bool copied;         // all three
  CodedSteps steps;
  ColumnSplits splits;
  Epilogue epilogue;
};

/// Rows of a tile past the weight's last one repeat it: nobody looks at their sums.
__device__ __forceinline__ int64_t row_within(const CodedMatrix& m, int64_t row) {
  return row < m.out ? row : m.out - 1;
}

/// A thread's activations.
template <class Tile>
struct LeftPieces {
  static constexpr int kVector = 8;
  using Pieces = ThreadPieces<Tile::kTileRows, Tile::kStep / kVector, Tile::kThreads>;
  static constexpr int kNowhere = 0x7fffffff;
  static constexpr int kDown = Pieces::kAll / Pieces::kCount * kVector / Tile::kStep;  // rows at once
  static_assert(kDown % 2 == 0 && kDown * Pieces::kCount == Tile::kTileRows);

  const uint16_t* from[Pieces::kCount];
  int column[Pieces::kCount];  // of the step; of rows that are not there beyond any

  __device__ __forceinline__ LeftPieces(const uint16_t* x, const int64_t (&rows)[Tile::kTileRows],
                                        int first_step) {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      const int64_t start = rows[Pieces::row(j)];
      const int k = Pieces::across(j) * kVector;
      from[j] = x + (start < 0 ? 0 : start) + int64_t{first_step} * Tile::kStep + k;
      column[j] = start < 0 ? kNowhere : k;
    }
  }

  template <class Stage>
  __device__ __forceinline__ void fetch(Stage& stage, int columns) const {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j)
      simt::cp_async<kVector * 2>(target(stage, Pieces::row(0), Pieces::across(0)) + j * kDown * Tile::kStep,
                                  from[j], column[j] < columns);
  }

  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) from[j] += Tile::kStep;
  }

  /// One by one, wherever rows begin and end.
  template <class Stage>
  static __device__ __forceinline__ void fetch_elements(Stage& stage, const uint16_t* x,
                                                        const int64_t (&rows)[Tile::kTileRows], int step,
                                                        int columns) {
#pragma unroll 1
    for (int i = Pieces::thread(); i < Tile::kTileRows * Tile::kStep; i += Tile::kThreads) {
      const int r = i / Tile::kStep;
      const int k = i % Tile::kStep;
      const bool there = rows[r] >= 0 && k < columns;
      target(stage, r, k / kVector)[k % kVector] =
          there ? simt::load(x + rows[r] + int64_t{step} * Tile::kStep + k) : uint16_t{0};
    }
  }

 private:
  template <class Stage>
  static __device__ __forceinline__ uint16_t* target(Stage& stage, int row, int across) {
    return &stage.x[row][(across ^ (row & 1) << 2) * kVector];
  }
};

/// A thread's codes.
template <class Tile, int Bits>
struct CodePieces {
  static constexpr int kRowWords = Tile::kRuns * Bits;
  static constexpr int kWords = kRowWords % 4 == 0 ? 4 : 2;
  using Pieces = ThreadPieces<Tile::kTileCols, kRowWords / kWords, Tile::kThreads>;

  const uint32_t* from[Pieces::kCount];

  __device__ __forceinline__ CodePieces(const CodedMatrix& m, const ProductTiles& tiles,
                                        const TileFactors<Tile>& factors, int first_step) {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j)
      from[j] = row_of(m, tiles, factors, Pieces::has(j) ? Pieces::row(j) : 0) +
                int64_t{first_step} * kRowWords + Pieces::across(j) * kWords;
  }

  template <class Stage>
  __device__ __forceinline__ void fetch(Stage& stage, int words) const {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      const int w = Pieces::across(j) * kWords;
      if (Pieces::has(j)) simt::cp_async<kWords * 4>(&stage.codes[Pieces::row(j)][w], from[j], w < words);
    }
  }

  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) from[j] += kRowWords;
  }

  /// Of rows that are no whole pieces, word by word.
  template <class Stage>
  static __device__ __forceinline__ void fetch_words(Stage& stage, const CodedProduct& p,
                                                     const TileFactors<Tile>& factors, int step, int words) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * kRowWords; i += Tile::kThreads) {
      const int n = i / kRowWords;
      const int w = i % kRowWords;
      const uint32_t* const row = row_of(p.weight.matrix, p.tiles, factors, n);
      simt::cp_async<4>(&stage.codes[n][w], row + int64_t{step} * kRowWords + w, w < words);
    }
  }

 private:
  static __device__ __forceinline__ const uint32_t* row_of(const CodedMatrix& m, const ProductTiles& tiles,
                                                           const TileFactors<Tile>& factors, int n) {
    const TileColumn column = column_of<Tile::kPairRun>(tiles, n);
    return factors.right[column.factor].words +
           row_within(m, factors.place.col0 + column.col) * (m.row_bits / 32);
  }
};

/// A thread's scales and zero points: those of one row of the weight, for each group that a step has a part
/// of.
template <class Tile>
struct ConstantPieces {
  using Pieces = ThreadPieces<Tile::kRuns, Tile::kTileCols, Tile::kThreads>;

  const float* scales;  // of the row's first group that this thread would bring; null where they are made
  const int32_t* zeros;
  int group;  // the next step's first one
  int runs;   // of it that are behind

  __device__ __forceinline__ ConstantPieces(const CodedMatrix& m, const ProductTiles& tiles,
                                            const CodedSteps& steps, bool copied,
                                            const TileFactors<Tile>& factors, int first_step)
      : group(first_step * Tile::kRuns / steps.group_runs),
        runs(first_step * Tile::kRuns % steps.group_runs) {
    const TileColumn column = column_of<Tile::kPairRun>(tiles, Pieces::across(0));
    const CodedSource& source = factors.right[column.factor];
    const int64_t first = row_within(m, factors.place.col0 + column.col) * m.row_step + Pieces::row(0);
    scales = copied ? source.floats + first : nullptr;
    zeros = source.zeros ? source.zeros + first : nullptr;
  }

  /// How many a step has a part of.
  __device__ __forceinline__ int groups(const CodedSteps& steps) const {
    const int left = steps.groups - group;
    return steps.groups_met < left ? steps.groups_met : left;
  }

  /// Of scales (stage.scales) or zeros (stage.zeros) of that many groups.
  template <class T>
  __device__ __forceinline__ void fetch(T (&to)[Tile::kRuns][Tile::kTileCols], const T* from,
                                        int groups) const {
    const int g = Pieces::row(0);
    const T* const first = from + group;
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      const int apart = j * (Tile::kThreads / Tile::kTileCols);
      if (Pieces::has(j) && g + apart < groups)
        simt::cp_async<4>(&to[g + apart][Pieces::across(0)], first + apart);
    }
  }

  template <class Stage>
  __device__ __forceinline__ void make_scales(Stage& stage, const CodedProduct& p, const CodeTable& table,
                                              const TileFactors<Tile>& factors, int groups) const {
#pragma unroll 1
    for (int i = Pieces::thread(); i < Tile::kTileCols * groups; i += Tile::kThreads) {
      const int n = i % Tile::kTileCols;
      const int g = i / Tile::kTileCols;
      const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n);
      const int64_t row = row_within(p.weight.matrix, factors.place.col0 + column.col);
      const int64_t constant = row * p.weight.matrix.row_step + group + g;
      stage.scales[g][n] = p.weight.scale(table, factors.right[column.factor], row, constant) * p.unscale;
    }
  }

  __device__ __forceinline__ void move_on(const CodedSteps& steps) {
    group += steps.groups_passed;
    runs += steps.runs_beyond;
    if (runs < steps.group_runs) return;
    runs -= steps.group_runs;
    ++group;
  }
};

/// All that a thread brings.
template <class Tile, class Decoder>
class CodedFetch {
 public:
  __device__ __forceinline__ CodedFetch(const CodedProduct& p, CodedShared<Tile, Decoder>& shared, int begin,
                                        int end)
      : p_(p),
        shared_(shared),
        step_(begin),
        end_(end),
        x_(p.x, shared.factors.left, begin),
        codes_(p.weight.matrix, p.tiles, shared.factors, begin),
        constants_(p.weight.matrix, p.tiles, p.steps, p.scales_copied, shared.factors, begin) {}

  /// Begins to bring the next step's columns, if there are any, into the next stage.
  __device__ __forceinline__ void begin_step() {
    if (step_ < end_) {
      auto& stage = shared_.stage[to_];
      const bool last = step_ + 1 == p_.steps.steps;
      const int columns = last ? p_.steps.last_columns : Tile::kStep;
      const int words = last ? p_.steps.last_words : CodePieces<Tile, Decoder::kBits>::kRowWords;
      const int groups = constants_.groups(p_.steps);
      if (p_.copied) {
        x_.fetch(stage, columns);
        codes_.fetch(stage, words);
        constants_.fetch(stage.scales, constants_.scales, groups);
      } else {
        fetch_otherwise(stage, columns, words, groups);
      }
      if (constants_.zeros) constants_.fetch(stage.zeros, constants_.zeros, groups);
      x_.move_on();
      codes_.move_on();
      constants_.move_on(p_.steps);
      ++step_;
      to_ = to_ + 1 == Tile::kStages ? 0 : to_ + 1;
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  }

 private:
  template <class Stage>
  __device__ __forceinline__ void fetch_otherwise(Stage& stage, int columns, int words, int groups) {
    const auto& factors = shared_.factors;
    if (p_.x_vectors)
      x_.fetch(stage, columns);
    else
      LeftPieces<Tile>::fetch_elements(stage, p_.x, factors.left, step_, columns);
    if (p_.code_pieces)
      codes_.fetch(stage, words);
    else
      codes_.fetch_words(stage, p_, factors, step_, words);
    if (p_.scales_copied)
      constants_.fetch(stage.scales, constants_.scales, groups);
    else
      constants_.make_scales(stage, p_, shared_.table, factors, groups);
  }

  const CodedProduct& p_;
  CodedShared<Tile, Decoder>& shared_;
  int step_;
  int end_;
  int to_ = 0;  // the next stage
  LeftPieces<Tile> x_;
  CodePieces<Tile, Decoder::kBits> codes_;
  ConstantPieces<Tile> constants_;
};

}  // namespace quantaria::ops
