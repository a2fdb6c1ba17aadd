#pragma once

#include "ops/dequant_matmul/coded_call.cuh"
#include "ops/dequant_matmul/coded_results.cuh"
#include "ops/dequant_matmul/coded_steps.cuh"
#include "ops/dequant_matmul/decoders.cuh"
#include "ops/gemm/column_splits.cuh"
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

/// The same place as in the first stage, so many bytes on.
template <class T>
__device__ __forceinline__ T* in_stage(T* of_first, int bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(of_first) + bytes);
}

template <class Tile, class Decoder>
struct CodedShared {
  union {
    CodedStage<Tile, Decoder::kBits> stage[Tile::kStages];
    TileResults<Tile> results;
  };
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

/// A thread's activations: of each of its rows pieces that are kSide apart, so that one address serves a row.
template <class Tile>
struct LeftPieces {
  static constexpr int kVector = 8;
  static constexpr int kAcross = Tile::kStep / kVector;
  // At least four side by side: eight lanes then write 16 bytes each into all banks.
  static constexpr int kSide = Tile::kThreads / Tile::kTileRows < 4 ? 4 : Tile::kThreads / Tile::kTileRows;
  static constexpr int kAtOnce = Tile::kThreads / kSide;
  static constexpr int kDown = Tile::kTileRows / kAtOnce;
  static constexpr int kPair = 4;  // pieces of a run, which change places with those of the next one
  static constexpr int kTargets =
      kSide == kPair ? 2 : 1;  // more pieces side by side are of both runs of a pair
  static constexpr int kNowhere = 0x7fffffff;
  static_assert(kDown * kAtOnce == Tile::kTileRows && kAcross % kSide == 0 && kAtOnce % 2 == 0);

  uint16_t* to[kTargets];  // in the first stage
  const uint16_t* from[kDown];
  int column[kDown];  // of the step; of rows that are not there beyond any

  template <class Stage>
  __device__ __forceinline__ LeftPieces(Stage& first, const uint16_t* x,
                                        const int64_t (&rows)[Tile::kTileRows], int first_step) {
    const int k = thread() % kSide * kVector;
#pragma unroll
    for (int run = 0; run < kTargets; ++run)
      to[run] = target(first, thread() / kSide, thread() % kSide + run * kPair);
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
      const int64_t start = rows[thread() / kSide + i * kAtOnce];
      from[i] = x + (start < 0 ? 0 : start) + int64_t{first_step} * Tile::kStep + k;
      column[i] = start < 0 ? kNowhere : k;
    }
  }

  /// Whole: a step of kStep columns.
  template <bool Whole>
  __device__ __forceinline__ void fetch(int stage, int columns) const {
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int across = 0; across < kAcross; across += kSide) {
        const bool wanted = Whole ? column[i] != kNowhere : column[i] < columns - across * kVector;
        uint16_t* const first = to[across / kPair % kTargets] + across / (2 * kPair) * 2 * kPair * kVector;
        simt::cp_async<kVector * 2>(in_stage(first + i * kAtOnce * Tile::kStep, stage),
                                    from[i] + across * kVector, wanted);
      }
  }

  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int i = 0; i < kDown; ++i) from[i] += Tile::kStep;
  }

  /// One by one, wherever rows begin and end.
  template <class Stage>
  static __device__ __forceinline__ void fetch_elements(Stage& stage, const uint16_t* x,
                                                        const int64_t (&rows)[Tile::kTileRows], int step,
                                                        int columns) {
#pragma unroll 1
    for (int i = thread(); i < Tile::kTileRows * Tile::kStep; i += Tile::kThreads) {
      const int r = i / Tile::kStep;
      const int k = i % Tile::kStep;
      const bool there = rows[r] >= 0 && k < columns;
      target(stage, r, k / kVector)[k % kVector] =
          there ? simt::load(x + rows[r] + int64_t{step} * Tile::kStep + k) : uint16_t{0};
    }
  }

 private:
  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  template <class Stage>
  static __device__ __forceinline__ uint16_t* target(Stage& stage, int row, int across) {
    return &stage.x[row][(across ^ (row & 1) * kPair) * kVector];
  }
};

/// A thread's codes: pieces of one row, kSide apart.
template <class Tile, int Bits>
struct CodePieces {
  static constexpr int kRowWords = Tile::kRuns * Bits;
  static constexpr int kWords = 4;
  static constexpr int kSide = Tile::kThreads / Tile::kTileCols;
  static_assert(kRowWords % kWords == 0 && kSide * Tile::kTileCols == Tile::kThreads);

  const uint32_t* from;

  __device__ __forceinline__ CodePieces(const CodedMatrix& m, const ProductTiles& tiles,
                                        const TileFactors<Tile>& factors, int first_step)
      : from(row_of(m, tiles, factors, row()) + int64_t{first_step} * kRowWords + first_word()) {}

  template <class Stage>
  static __device__ __forceinline__ uint32_t* target(Stage& stage) {
    return &stage.codes[row()][first_word()];
  }

  /// Whole: a step of kRowWords words. `to` is the thread's target.
  template <bool Whole>
  __device__ __forceinline__ void fetch(uint32_t* to, int words) const {
#pragma unroll
    for (int w = 0; w < kRowWords; w += kSide * kWords) {
      const bool there = w + kSide * kWords <= kRowWords || first_word() < kRowWords - w;
      if (there) simt::cp_async<kWords * 4>(to + w, from + w, Whole || first_word() < words - w);
    }
  }
  template <class Stage>
  __device__ __forceinline__ void fetch(Stage& stage, int words) const {
    fetch<false>(target(stage), words);
  }

  __device__ __forceinline__ void move_on() { from += kRowWords; }

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
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kSide; }
  static __device__ __forceinline__ int first_word() {
    return static_cast<int>(threadIdx.x) % kSide * kWords;
  }
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

  template <class T>
  static __device__ __forceinline__ T* target(T (&to)[Tile::kRuns][Tile::kTileCols]) {
    return &to[Pieces::row(0)][Pieces::across(0)];
  }

  /// Of scales or zeros of that many groups. `to` is the thread's target.
  template <class T>
  __device__ __forceinline__ void fetch(T* to, const T* from, int groups) const {
    constexpr int kAtOnce = Tile::kThreads / Tile::kTileCols;
    const T* const first = from + static_cast<uint32_t>(group);
#pragma unroll
    for (int g = 0; g < Tile::kRuns; g += kAtOnce) {
      if (g >= groups) break;  // for all threads, mostly after the first one
      if (Pieces::row(0) < groups - g) simt::cp_async<4>(to + g * Tile::kTileCols, first + g);
    }
  }
  template <class T>
  __device__ __forceinline__ void fetch(T (&to)[Tile::kRuns][Tile::kTileCols], const T* from,
                                        int groups) const {
    fetch(target(to), from, groups);
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
        end_(end),
        whole_end_(p.copied ? (end < p.steps.whole ? end : p.steps.whole) : 0),
        x_(shared.stage[0], p.x, shared.factors.left, begin),
        codes_to_(Codes::target(shared.stage[0])),
        codes_(p.weight.matrix, p.tiles, shared.factors, begin),
        scales_to_(Constants::target(shared.stage[0].scales)),
        zeros_to_(Constants::target(shared.stage[0].zeros)),
        constants_(p.weight.matrix, p.tiles, p.steps, p.scales_copied, shared.factors, begin) {}

  /// Begins to bring a step's columns, if there is such a step, into the next stage. Steps are asked for in
  /// turn.
  __device__ __forceinline__ void begin_step(int step) {
    if (step < whole_end_) {
      x_.template fetch<true>(at_, Tile::kStep);
      codes_.template fetch<true>(in_stage(codes_to_, at_), Codes::kRowWords);
      fetch_constants(true);
    } else if (step < end_) {
      fetch_otherwise(step);
    }
    x_.move_on();
    codes_.move_on();
    constants_.move_on(p_.steps);
    at_ = at_ + kStageBytes == Tile::kStages * kStageBytes ? 0 : at_ + kStageBytes;
    simt::cp_async_commit();  // an empty group too: waits count them
  }

  /// Where the stage of the oldest of the last kStages steps is, in bytes from the first stage.
  __device__ __forceinline__ int oldest() const { return at_; }

 private:
  using Stage = CodedStage<Tile, Decoder::kBits>;
  using Codes = CodePieces<Tile, Decoder::kBits>;
  using Constants = ConstantPieces<Tile>;
  static constexpr int kStageBytes = static_cast<int>(sizeof(Stage));

  __device__ __forceinline__ void fetch_otherwise(int step) {
    const auto& factors = shared_.factors;
    Stage& stage = *in_stage(&shared_.stage[0], at_);
    const bool last = step + 1 == p_.steps.steps;
    const int columns = last ? p_.steps.last_columns : Tile::kStep;
    const int words = last ? p_.steps.last_words : Codes::kRowWords;
    if (p_.x_vectors)
      x_.template fetch<false>(at_, columns);
    else
      LeftPieces<Tile>::fetch_elements(stage, p_.x, factors.left, step, columns);
    if (p_.code_pieces)
      codes_.fetch(stage, words);
    else
      codes_.fetch_words(stage, p_, factors, step, words);
    if (!p_.scales_copied)
      constants_.make_scales(stage, p_, shared_.table, factors, constants_.groups(p_.steps));
    fetch_constants(p_.scales_copied);
  }

  __device__ __forceinline__ void fetch_constants(bool with_scales) const {
    const int groups = constants_.groups(p_.steps);
    if (with_scales) constants_.fetch(in_stage(scales_to_, at_), constants_.scales, groups);
    if (constants_.zeros) constants_.fetch(in_stage(zeros_to_, at_), constants_.zeros, groups);
  }

  const CodedProduct& p_;
  CodedShared<Tile, Decoder>& shared_;
  int end_;
  int whole_end_;  // of the steps that are whole and copied as they are: of nearly all nothing is asked
  int at_ = 0;     // the next step's stage, in bytes from the first one
  LeftPieces<Tile> x_;
  uint32_t* codes_to_;  // in the first stage
  Codes codes_;
  float* scales_to_;
  int32_t* zeros_to_;
  Constants constants_;
};

}  // namespace quantaria::ops
