#pragma once

#include <cstdint>
#include <vector>

namespace quantaria::ops {

/// Columns of a weight that name their groups, as act-order GPTQ leaves them, put side by side group by
/// group: products then find the scales of neighbours equal, as in any other weight, if the activations'
/// columns come in the same order.
struct GroupOrder {
  int64_t span;                  // columns of each group, a multiple of 32
  std::vector<int32_t> columns;  // [groups * span]: which one stands there, rising inside a group; -1: none

  bool operator==(const GroupOrder&) const = default;
};

/// Of index [in], all within [0, groups). Columns is empty if groups are so uneven, or so short, that more
/// than half of the places would be empty ones.
GroupOrder order_by_groups(const std::vector<int32_t>& index, int64_t groups);

}  // namespace quantaria::ops
