#include "io/json_reader.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace quantaria::io {
namespace {

constexpr int kMaxDepth = 128;
constexpr int64_t kMaxNatural = (int64_t{1} << 53) - 1;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, uint32_t code) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    tail(6), tail(0);
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    tail(12), tail(6), tail(0);
  }
}

}  // namespace

void JsonReader::fail_here(const std::string& expected) {
  fail(ErrorCode::format, what_, ": not valid at byte ", at_, ": ", expected, " expected");
}

char JsonReader::peek() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

void JsonReader::expect(char c) {
  if (!accept(c)) fail_here(std::string("'") + c + "'");
}

bool JsonReader::accept(char c) {
  if (peek() != c || at_ >= text_.size()) return false;
  ++at_;
  return true;
}

uint32_t JsonReader::hex4() {
  uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const int digit = is_digit(c)              ? c - '0'
                      : (c >= 'a' && c <= 'f') ? c - 'a' + 10
                      : (c >= 'A' && c <= 'F') ? c - 'A' + 10
                                               : -1;
    if (digit < 0) fail_here("four hexadecimal digits");
    code = code * 16 + static_cast<uint32_t>(digit);
  }
  return code;
}

std::string JsonReader::string() {
  std::string out;
  scan_string(&out);
  return out;
}

void JsonReader::skip_string() { scan_string(nullptr); }

void JsonReader::scan_string(std::string* out) {
  if (!accept('"')) fail_here("a string");
  for (;;) {
    if (out != nullptr && out->size() > kMaxStringBytes) fail_here("a string of at most 1 MiB");
    if (at_ >= text_.size()) fail_here("the end of a string");
    const char c = text_[at_++];
    if (c == '"') return;
    if (static_cast<unsigned char>(c) < 0x20) fail_here("no control character in a string");
    if (c != '\\') {
      if (out != nullptr) *out += c;
      continue;
    }
    const char escape = at_ < text_.size() ? text_[at_++] : '\0';
    constexpr std::string_view kEscapes = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (const size_t i = kEscapes.find(escape); escape != '\0' && i != std::string_view::npos) {
      if (out != nullptr) *out += kMeanings[i];
    } else if (escape == 'u') {
      uint32_t code = hex4();
      if (code >= 0xDC00 && code < 0xE000) fail_here("no lone surrogate");
      if (code >= 0xD800 && code < 0xDC00) {
        if (text_.substr(at_, 2) != "\\u") fail_here("the second half of a surrogate pair");
        at_ += 2;
        const uint32_t low = hex4();
        if (low < 0xDC00 || low >= 0xE000) fail_here("the second half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      if (out != nullptr) append_utf8(*out, code);
    } else {
      fail_here("a known escape");
    }
  }
}

int64_t JsonReader::natural() {
  if (!is_digit(peek())) fail_here("a non-negative integer");
  if (text_[at_] == '0' && at_ + 1 < text_.size() && is_digit(text_[at_ + 1])) fail_here("no leading zero");
  int64_t value = 0;
  for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
    value = value * 10 + (text_[at_] - '0');
    if (value > kMaxNatural) fail_here("an integer of at most 2^53 - 1");
  }
  if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E'))
    fail_here("an integer without fraction or exponent");
  return value;
}

bool JsonReader::accept_null() {
  if (peek() != 'n') return false;
  literal("null");
  return true;
}

void JsonReader::literal(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) fail_here("a JSON value");
  at_ += word.size();
}

void JsonReader::digits() {
  if (at_ >= text_.size() || !is_digit(text_[at_])) fail_here("a digit");
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
}

void JsonReader::number() {
  if (text_[at_] == '-') ++at_;
  if (at_ < text_.size() && text_[at_] == '0') {
    ++at_;
  } else {
    digits();
  }
  if (at_ < text_.size() && text_[at_] == '.') {
    ++at_;
    digits();
  }
  if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
    ++at_;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
    digits();
  }
}

void JsonReader::skip_object(int depth) {
  expect('{');
  if (accept('}')) return;
  NameSet names;
  do {
    names.add(string());
    expect(':');
    skip_value(depth + 1);
  } while (accept(','));
  expect('}');
  if (names.has_repeated()) fail_here("no name twice in the object that ends here");
}

void JsonReader::skip_array(int depth) {
  expect('[');
  if (accept(']')) return;
  do {
    skip_value(depth + 1);
  } while (accept(','));
  expect(']');
}

void JsonReader::skip_value(int depth) {
  if (depth > kMaxDepth) fail_here("at most 128 levels of nesting");
  const char c = peek();
  switch (c) {
    case '"':
      return skip_string();
    case '{':
      return skip_object(depth);
    case '[':
      return skip_array(depth);
    case 't':
      return literal("true");
    case 'f':
      return literal("false");
    case 'n':
      return literal("null");
    default:
      if (c != '-' && !is_digit(c)) fail_here("a JSON value");
      number();
  }
}

void JsonReader::finish() {
  peek();
  if (at_ != text_.size()) fail_here("the end");
}

bool NameSet::has_repeated() {
  std::sort(hashes_.begin(), hashes_.end());
  return std::adjacent_find(hashes_.begin(), hashes_.end()) != hashes_.end();
}

bool is_utf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const auto lead = static_cast<unsigned char>(bytes[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const int length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || i + static_cast<size_t>(length) > bytes.size()) return false;
    const auto second = static_cast<unsigned char>(bytes[i + 1]);
    const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;   // overlong forms
    const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;  // surrogates, past U+10FFFF
    if (second < low || second > high) return false;
    for (int k = 2; k < length; ++k)
      if ((static_cast<unsigned char>(bytes[i + static_cast<size_t>(k)]) & 0xC0) != 0x80) return false;
    i += static_cast<size_t>(length);
  }
  return true;
}

}  // namespace quantaria::io
