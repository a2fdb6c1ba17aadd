#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "core/thread_pool.h"

/// What a decoder does between its products. Activations are float32, float16 or bfloat16, rows without gaps;
/// everything is computed in float32 and rounded once. The bits do not depend on the thread count, nor on how
/// many rows there are.
namespace quantaria::ops {

/// y[t] = gain * x[t] / sqrt(mean(x[t]^2) + eps). x and y [T, n], gain [1, n] of any float dtype.
/// Source: Zhang and Sennrich, arXiv 1910.07467.
void rms_norm(ThreadPool& pool, const ConstMatrix& x, const ConstMatrix& gain, float eps, const Matrix& y);

/// Which elements of a row of heads are turned, and by the angles of which position.
struct Rotary {
  int64_t heads;
  int64_t head_dim;
  int64_t offset;    // of the turned elements in a head
  int64_t dims;      // turned elements, even
  bool interleaved;  // pairs are neighbours; else element i goes with i + dims / 2
  int64_t sequence;  // row t is at position first + t mod sequence
  int64_t first;
};

/// Rotary embedding: each pair (a, b) becomes (a cos - b sin, b cos + a sin); other elements stay. x and y
/// [T, heads * head_dim], cosines and sines float32 [positions, dims / 2]. Source: Su et al., arXiv
/// 2104.09864.
void rotate(ThreadPool& pool, const ConstMatrix& x, const float* cosines, const float* sines,
            const Rotary& rotary, const Matrix& y);

struct Attention {
  int64_t sequences;
  int64_t queries;  // of each sequence: its last ones
  int64_t keys;     // of each sequence
  int64_t heads;
  int64_t kv_heads;  // divides heads: head h reads key head h * kv_heads / heads
  int64_t key_dim;
  int64_t value_dim;
  float scale;
  int64_t window;  // keys that a query sees, its own position the last; 0 for all before it
};

/// Causal softmax attention. q [sequences * queries, heads * key_dim], k [sequences * keys, kv_heads *
/// key_dim], v [sequences * keys, kv_heads * value_dim], y [sequences * queries, heads * value_dim]. What is
/// not finite makes the rows that see it NaN, and maybe others of its sequence.
void attend(ThreadPool& pool, const ConstMatrix& q, const ConstMatrix& k, const ConstMatrix& v,
            const Attention& attention, const Matrix& y);

/// y[t] = table[ids[t]]. ERR_ARGUMENT naming the first id that the table [V, n] does not have.
void embed(ThreadPool& pool, const ConstMatrix& table, const int32_t* ids, const Matrix& y);

/// That error alone, of `count` ids for a vocabulary.
void check_ids(const int32_t* ids, int64_t count, int64_t vocabulary);

/// y = a + b, or with gates [T, 1] (logits) a[t] + sigmoid(gates[t]) * b[t].
void add(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* gates,
         const Matrix& y);

/// y = silu(gate) * up.
void swiglu(ThreadPool& pool, const ConstMatrix& gate, const ConstMatrix& up, const Matrix& y);

/// How one row of logits predicts its id, and how far it is from another row.
struct TokenScore {
  float loss;        // -log softmax(logits)[target]
  float divergence;  // KL(baseline || model) in nats
  float agree;       // 1 if both have the same largest logit (the first of equal ones)
  float error;       // sum (logits - baseline)^2
  float reference;   // sum baseline^2
};

/// Scores rows of float32 logits [T, V]; baseline may be null, and then only the losses are set. A NaN in a
/// row makes its loss NaN. ERR_ARGUMENT for a target that is no column.
void score_tokens(ThreadPool& pool, const float* logits, const float* baseline, int64_t rows,
                  int64_t vocabulary, const int32_t* targets, TokenScore* scores);

}  // namespace quantaria::ops
