#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quantaria {

using Shape = std::vector<int64_t>;
using Strides = std::vector<int64_t>;

/// Product of the dimensions. Throws ERR_SHAPE if a dimension is negative or the product leaves 2^53, the
/// range in which JavaScript counts exactly.
int64_t element_count(const Shape& shape);

/// Strides, in elements, of a row-major tensor without gaps.
Strides row_major(const Shape& shape);

/// "[2, 3]"
std::string to_string(const Shape& shape);

}  // namespace quantaria
