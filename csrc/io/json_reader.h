#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace quantaria::io {

/// Reads JSON (RFC 8259) piece by piece, without a tree: a header of 100 MB costs no more than what its reader
/// keeps. Anything that is not JSON throws ERR_FORMAT with the position.
class JsonReader {
 public:
  static constexpr size_t kMaxStringBytes = 16'000'000;

  /// `text` must be valid UTF-8; `what` begins every message.
  JsonReader(std::string_view text, std::string what) : text_(text), what_(std::move(what)) {}

  /// The next character that is not white space, not consumed; 0 at the end.
  char peek();
  /// Consumes `c` after white space, or throws.
  void expect(char c);
  /// Consumes `c` if it is next.
  bool accept(char c);

  /// At most `max_bytes` of them, or it throws.
  std::string string(size_t max_bytes = kMaxStringBytes);
  /// A number that is written as a non-negative integer (no sign, fraction or exponent) of at most 2^53 - 1.
  int64_t natural();
  /// Consumes `null` if it is next.
  bool accept_null();
  /// Any value, checked and dropped; objects may not have a name twice.
  void skip_value(int depth = 0);
  /// Only white space may follow.
  void finish();

  [[noreturn]] void fail_here(const std::string& expected);

 private:
  void skip_object(int depth);
  void skip_array(int depth);
  void literal(std::string_view word);
  void number();
  void digits();
  uint32_t hex4();

  std::string_view text_;
  std::string what_;
  size_t at_ = 0;
};

/// True if the bytes are valid UTF-8 (RFC 3629: no overlong forms, surrogates or values past U+10FFFF).
bool is_utf8(std::string_view bytes);

}  // namespace quantaria::io
