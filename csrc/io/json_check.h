#pragma once

#include <string>
#include <string_view>

namespace quantaria::io {

/// Throws ERR_FORMAT, beginning with `what`, unless `text` is one JSON value in UTF-8 in which no object has
/// a name twice. (JSON.parse lets the last one win, and two readers of one file may then see different
/// things.)
void check_json(std::string_view text, const std::string& what);

}  // namespace quantaria::io
