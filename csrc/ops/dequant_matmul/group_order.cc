#include "ops/dequant_matmul/group_order.h"

#include <algorithm>

namespace quantaria::ops {

GroupOrder order_by_groups(const std::vector<int32_t>& index, int64_t groups) {
  constexpr int64_t kRun = 32;
  std::vector<int64_t> counts(static_cast<size_t>(groups));
  int64_t most = 0;
  for (const int32_t group : index) most = std::max(most, ++counts[static_cast<size_t>(group)]);
  GroupOrder order{(most + kRun - 1) / kRun * kRun, {}};
  if (groups * order.span > 2 * static_cast<int64_t>(index.size())) return order;
  order.columns.assign(static_cast<size_t>(groups * order.span), -1);
  std::vector<int64_t> next(static_cast<size_t>(groups));
  for (size_t column = 0; column < index.size(); ++column) {
    const int64_t group = index[column];
    const int64_t place = group * order.span + next[static_cast<size_t>(group)]++;
    order.columns[static_cast<size_t>(place)] = static_cast<int32_t>(column);
  }
  return order;
}

}  // namespace quantaria::ops
