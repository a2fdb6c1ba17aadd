#pragma once

#include <cstdint>
#include <vector>

/// Hadamard matrices of orders that are no powers of two.
namespace quantaria::ops {

/// m of n = 2^k * m: 1, or four times the odd part of n if a matrix of that order is known here, or 40 in
/// place of 20 where 40 divides n. 0 if there is none. Orders are at most kLargestBaseOrder.
inline constexpr int64_t kLargestBaseOrder = 252;
int64_t base_order(int64_t n);

/// H_m row by row, entries +1 and -1. m is as base_order gives it.
///  - m - 1 = q prime: Paley's first construction, [[1, -1..], [1.., I + chi(i - j)]], skew but for I;
///  - else m / 2 - 1 = q prime or the square of one: his second, [[C + I, C - I], [C - I, -C - I]] with the
///    conference matrix C = [[0, 1..], [1.., chi(i - j)]], symmetric;
///  - 40: [[H20, H20], [H20, -H20]];
///  - 92, 116: Williamson's array of four symmetric circulants.
/// 12, 28, 40, 60 and 108 are QuaRot's.
std::vector<int8_t> base_matrix(int64_t m);

}  // namespace quantaria::ops
