#include "io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/shape.h"
#include "io/json_reader.h"

namespace quantaria::io {
namespace {

constexpr int64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// What the format does not limit and no checkpoint comes near: a hostile header must not take all memory.
constexpr size_t kMaxTensors = 500'000;
constexpr size_t kMaxDimensions = 64;

struct StoredDType {
  std::string_view name;
  int bits;
};
constexpr std::array<StoredDType, 22> kStoredDTypes{{
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},        {"F32", 32},    {"I64", 64},    {"U64", 64},    {"F64", 64},
    {"C64", 64},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6},
}};

const StoredDType* find_dtype(std::string_view name) {
  const auto* found = std::find_if(kStoredDTypes.begin(), kStoredDTypes.end(),
                                   [&](const StoredDType& d) { return d.name == name; });
  return found == kStoredDTypes.end() ? nullptr : found;
}

/// Names go into messages; a hostile one must not fill the terminal.
std::string shown(const std::string& name) {
  constexpr size_t kShown = 100;
  return "'" + (name.size() <= kShown ? name : name.substr(0, kShown) + "...") + "'";
}

/// Reads one file's header. Positions in entries are relative to the data until `finish`.
class HeaderReader {
 public:
  HeaderReader(std::string path, std::string_view text, int64_t data_begin, int64_t data_bytes)
      : path_(std::move(path)),
        json_(text, path_ + ": header"),
        data_begin_(data_begin),
        data_bytes_(data_bytes) {}

  SafetensorsHeader read() {
    json_.expect('{');
    if (!json_.accept('}')) {
      do {
        std::string name = json_.string();
        json_.expect(':');
        if (name == "__metadata__") {
          metadata();
        } else {
          entry(std::move(name));
        }
      } while (json_.accept(','));
      json_.expect('}');
    }
    json_.finish();
    check_names();
    check_ranges();
    return std::move(header_);
  }

 private:
  void metadata() {
    if (metadata_seen_) fail(ErrorCode::format, path_, ": __metadata__ occurs twice");
    metadata_seen_ = true;
    if (json_.accept_null()) return;
    json_.expect('{');
    if (json_.accept('}')) return;
    NameSet keys;
    do {
      keys.add(json_.string());
      json_.expect(':');
      json_.skip_string();
    } while (json_.accept(','));
    json_.expect('}');
    if (keys.has_repeated()) fail(ErrorCode::format, path_, ": a key of __metadata__ occurs twice");
  }

  void entry(std::string name) {
    std::optional<std::string> dtype;
    std::optional<std::vector<int64_t>> shape;
    std::optional<std::vector<int64_t>> offsets;
    NameSet others;
    json_.expect('{');
    if (!json_.accept('}')) {
      do {
        const std::string key = json_.string();
        json_.expect(':');
        if (key == "dtype") {
          once(name, key, dtype.has_value());
          dtype = json_.string();
        } else if (key == "shape") {
          once(name, key, shape.has_value());
          shape = naturals(name, key, kMaxDimensions);
        } else if (key == "data_offsets") {
          once(name, key, offsets.has_value());
          offsets = naturals(name, key, 2);
        } else {
          others.add(key);
          json_.skip_value();
        }
      } while (json_.accept(','));
      json_.expect('}');
    }
    if (others.has_repeated())
      fail(ErrorCode::format, path_, ": tensor ", shown(name), " gives an extra field twice");
    if (!dtype || !shape || !offsets)
      fail(ErrorCode::format, path_, ": tensor ", shown(name), " lacks its ",
           !dtype   ? "dtype"
           : !shape ? "shape"
                    : "data_offsets");
    const StoredDType* known = find_dtype(*dtype);
    if (known == nullptr)
      fail(ErrorCode::format, path_, ": tensor ", shown(name), " has the unknown dtype ", shown(*dtype));
    if (offsets->size() != 2)
      fail(ErrorCode::format, path_, ": tensor ", shown(name), " has ", offsets->size(),
           " data_offsets, 2 expected");
    check_size(name, *known, *shape, (*offsets)[0], (*offsets)[1]);
    if (header_.tensors.size() == kMaxTensors)
      fail(ErrorCode::format, path_, ": more than ", kMaxTensors, " tensors");
    header_.tensors.push_back(
        {std::move(name), known->name, std::move(*shape), (*offsets)[0], (*offsets)[1]});
  }

  void once(const std::string& name, const std::string& key, bool seen) {
    if (seen) fail(ErrorCode::format, path_, ": tensor ", shown(name), " gives its ", key, " twice");
  }

  std::vector<int64_t> naturals(const std::string& name, const std::string& key, size_t max) {
    std::vector<int64_t> values;
    json_.expect('[');
    if (json_.accept(']')) return values;
    do {
      if (values.size() == max)
        fail(ErrorCode::format, path_, ": tensor ", shown(name), " has more than ", max, " ", key);
      values.push_back(json_.natural());
    } while (json_.accept(','));
    json_.expect(']');
    return values;
  }

  void check_size(const std::string& name, const StoredDType& dtype, const std::vector<int64_t>& shape,
                  int64_t begin, int64_t end) {
    int64_t bits = dtype.bits;
    for (const int64_t n : shape)
      if (__builtin_mul_overflow(bits, n, &bits))
        fail(ErrorCode::format, path_, ": tensor ", shown(name), " of ", shape.size(),
             " dimensions is too large");
    if (bits % 8 != 0)
      fail(ErrorCode::format, path_, ": tensor ", shown(name), " of ", dtype.name,
           " does not fill whole bytes");
    if (end < begin || end - begin != bits / 8)
      fail(ErrorCode::format, path_, ": tensor ", shown(name), " lies at ", begin, " to ", end, ", but ",
           dtype.name, " of shape ", to_string(shape), " takes ", bits / 8, " bytes");
  }

  void check_names() {
    std::vector<const std::string*> names;
    for (const TensorEntry& t : header_.tensors) names.push_back(&t.name);
    std::sort(names.begin(), names.end(), [](const auto* a, const auto* b) { return *a < *b; });
    const auto twice =
        std::adjacent_find(names.begin(), names.end(), [](const auto* a, const auto* b) { return *a == *b; });
    if (twice != names.end()) fail(ErrorCode::format, path_, ": tensor ", shown(**twice), " occurs twice");
  }

  /// The data must be covered exactly, without holes or overlaps.
  void check_ranges() {
    std::stable_sort(header_.tensors.begin(), header_.tensors.end(), [](const auto& a, const auto& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    int64_t at = 0;
    for (TensorEntry& t : header_.tensors) {
      if (t.end > data_bytes_)
        fail(ErrorCode::format, path_, ": tensor ", shown(t.name), " ends at byte ", t.end, " of ",
             data_bytes_, " bytes of data");
      if (t.begin != at)
        fail(ErrorCode::format, path_, ": tensor ", shown(t.name), " begins at ", t.begin, ", ", at,
             " expected (", t.begin < at ? "an overlap" : "a hole", ")");
      at = t.end;
      t.begin += data_begin_;
      t.end += data_begin_;
    }
    if (at != data_bytes_)
      fail(ErrorCode::format, path_, ": ", data_bytes_ - at, " bytes after the last tensor's end");
  }

  std::string path_;
  JsonReader json_;
  int64_t data_begin_;
  int64_t data_bytes_;
  SafetensorsHeader header_;
  bool metadata_seen_ = false;
};

}  // namespace

int bits_of_stored_dtype(std::string_view dtype) {
  const StoredDType* found = find_dtype(dtype);
  return found == nullptr ? 0 : found->bits;
}

SafetensorsHeader read_safetensors_header(const std::string& path, const std::byte* file, int64_t size) {
  if (size < kLengthBytes)
    fail(ErrorCode::format, path, ": ", size, " bytes are too few for a safetensors file");
  uint64_t length = 0;
  std::memcpy(&length, file, sizeof(length));
  if (length > kMaxHeaderBytes)
    fail(ErrorCode::format, path, ": a header of ", length, " bytes, at most ", kMaxHeaderBytes, " expected");
  const auto header_bytes = static_cast<int64_t>(length);
  if (header_bytes > size - kLengthBytes)
    fail(ErrorCode::format, path, ": a header of ", length, " bytes in a file of ", size);
  const std::string_view text(reinterpret_cast<const char*>(file) + kLengthBytes,
                              static_cast<size_t>(length));
  if (!is_utf8(text)) fail(ErrorCode::format, path, ": the header is not UTF-8");
  const int64_t data_begin = kLengthBytes + header_bytes;
  return HeaderReader(path, text, data_begin, size - data_begin).read();
}

}  // namespace quantaria::io
