#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace quantaria::io {

/// Reads JSON (RFC 8259) piece by piece, without a tree: a header of 100 MB costs no more than what its
/// reader keeps. Anything that is not JSON throws ERR_FORMAT with the position.
class JsonReader {
 public:
  /// Strings that are kept, names above all: far beyond anything that a checkpoint needs.
  static constexpr size_t kMaxStringBytes = size_t{1} << 20;

  /// `text` must be valid UTF-8; `what` begins every message.
  JsonReader(std::string_view text, std::string what) : text_(text), what_(std::move(what)) {}

  /// The next character that is not white space, not consumed; 0 at the end.
  char peek();
  /// Consumes `c` after white space, or throws.
  void expect(char c);
  /// Consumes `c` if it is next.
  bool accept(char c);

  std::string string();
  /// A string of any length, checked and dropped.
  void skip_string();
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
  void scan_string(std::string* out);
  void number();
  void digits();
  uint32_t hex4();

  std::string_view text_;
  std::string what_;
  size_t at_ = 0;
};

/// The names of one object, to find one that comes twice. Of each only a hash is kept, so that a million of
/// them cost little; two names of one hash, which nobody meets by chance, count as one.
class NameSet {
 public:
  void add(std::string_view name) { hashes_.push_back(std::hash<std::string_view>{}(name)); }
  bool has_repeated();

 private:
  std::vector<size_t> hashes_;
};

/// True if the bytes are valid UTF-8 (RFC 3629: no overlong forms, surrogates or values past U+10FFFF).
bool is_utf8(std::string_view bytes);

}  // namespace quantaria::io
