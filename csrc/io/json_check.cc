#include "io/json_check.h"

#include "core/error.h"
#include "io/json_reader.h"

namespace quantaria::io {

void check_json(std::string_view text, const std::string& what) {
  if (!is_utf8(text)) fail(ErrorCode::format, what, ": not UTF-8");
  JsonReader json(text, what);
  json.skip_value();
  json.finish();
}

}  // namespace quantaria::io
