#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "io/json_check.h"
#include "io/json_reader.h"
#include "io/mapped_file.h"
#include "io/output_file.h"
#include "io/safetensors_header.h"

namespace quantaria::io {
namespace {

/// A directory that goes with its owner.
struct Scratch {
  std::string path = (std::filesystem::temp_directory_path() / "quantaria-io-XXXXXX").string();
  Scratch() { CHECK(::mkdtemp(path.data()) != nullptr); }
  ~Scratch() { std::filesystem::remove_all(path); }
  std::string file(const std::string& name) const { return path + "/" + name; }
};

void put(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}
std::string get(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string with_length(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + data;
}

SafetensorsHeader parse(const std::string& file) {
  // In a block of its own size, so that the sanitizer sees a read past the end.
  const std::vector<char> exact(file.begin(), file.end());
  return read_safetensors_header("f", reinterpret_cast<const std::byte*>(exact.data()),
                                 static_cast<int64_t>(exact.size()));
}

bool is_json(const std::string& text) {
  const std::vector<char> exact(text.begin(), text.end());
  try {
    check_json({exact.data(), exact.size()}, "text");
    return true;
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::format);
    return false;
  }
}

const std::string kHeader =
    R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[2,10]},"a\u00e9":{"shape":[2],)"
    R"("x":[1.5e3,{"y":null}],"dtype":"U8","data_offsets":[0,2]}} )";

}  // namespace

TEST("io: a header gives names, dtypes, shapes and places in the file, in the order of the data") {
  const std::string file = with_length(kHeader, "0123456789");
  const SafetensorsHeader header = parse(file);
  CHECK_EQ(header.tensors.size(), size_t{2});
  const int64_t data = 8 + static_cast<int64_t>(kHeader.size());
  CHECK_EQ(header.tensors[0].name, std::string("a\xC3\xA9"));
  CHECK_EQ(header.tensors[0].begin, data);
  CHECK_EQ(header.tensors[1].dtype, std::string_view("F32"));
  CHECK_EQ(header.tensors[1].shape, (std::vector<int64_t>{1, 2}));
  CHECK_EQ(header.tensors[1].end, data + 10);
}

TEST("io: a file cut at any byte is refused") {
  const std::string file = with_length(kHeader, "0123456789");
  for (size_t n = 0; n < file.size(); ++n) CHECK_THROWS(Error, parse(file.substr(0, n)));
}

TEST("io: a header cut at any byte, its length made to fit, is refused") {
  for (size_t n = 0; n + 1 < kHeader.size(); ++n)
    CHECK_THROWS(Error, parse(with_length(kHeader.substr(0, n), "0123456789")));
}

TEST("io: any byte of a header exchanged gives a header that covers the data, or an error") {
  int accepted = 0;
  for (size_t i = 0; i < kHeader.size(); ++i) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string header = kHeader;
      header[i] = static_cast<char>(byte);
      const std::string file = with_length(header, "0123456789");
      try {
        int64_t at = 8 + static_cast<int64_t>(header.size());
        for (const TensorEntry& tensor : parse(file).tensors) {
          CHECK_EQ(tensor.begin, at);
          at = tensor.end;
        }
        CHECK_EQ(at, static_cast<int64_t>(file.size()));
        ++accepted;
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::format);
      }
    }
  }
  CHECK(accepted > static_cast<int>(kHeader.size()));  // each byte exchanged by itself, at least
}

TEST("io: JSON is what RFC 8259 says, without names twice") {
  for (const char* text :
       {"null", "true", "false", "0", "-0", "-1.5e+10", "1E-2", "\"\"", "[]", "{}", " [1 , 2] ",
        R"({"a":{"a":1},"b":[{"a":1},{"a":2}]})", R"("\u0041\ud83d\ude00\n\/\\")", "\"\x7f\"", "\t\r\n 1"})
    CHECK(is_json(text));
  for (const char* text : {"",
                           " ",
                           "nul",
                           "True",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "-",
                           "1e",
                           "0x1",
                           "[1,]",
                           "[,1]",
                           "[1 2]",
                           "{\"a\"}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "'a'",
                           "\"\x01\"",
                           "\"\\x\"",
                           "\"\\u12\"",
                           R"("\ud800")",
                           R"("\udc00")",
                           R"("\ud800A")",
                           "[",
                           "\"",
                           "1 2",
                           "]",
                           "[1}",
                           R"({"a":1,"a":2})",
                           R"({"a":1,"\u0061":2})"})
    CHECK(!is_json(text));
  CHECK(!is_json(std::string("\"\0\"", 3)));
  CHECK(!is_json(std::string("1\0", 2)));
}

TEST("io: nesting is followed to 128 levels and refused beyond, however deep") {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  CHECK(is_json(nested(128)));
  CHECK(!is_json(nested(130)));
  CHECK(!is_json(std::string(5'000'000, '[')));
}

TEST("io: every sequence of up to three bytes is UTF-8 exactly if it decodes to a code point and back") {
  const auto reference = [](const std::string& s) {
    for (size_t i = 0; i < s.size();) {
      const auto byte = [&](size_t k) {
        return i + k < s.size() ? static_cast<unsigned char>(s[i + k]) : 0u;
      };
      const unsigned lead = byte(0);
      const size_t length = lead < 0x80       ? 1
                            : lead >> 5 == 6  ? 2
                            : lead >> 4 == 14 ? 3
                            : lead >> 3 == 30 ? 4
                                              : 0;
      if (length == 0 || i + length > s.size()) return false;
      unsigned code = length == 1 ? lead : lead & (0x7Fu >> length);
      for (size_t k = 1; k < length; ++k) {
        if (byte(k) >> 6 != 2) return false;
        code = code << 6 | (byte(k) & 0x3F);
      }
      const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
      if (code < least[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
      i += length;
    }
    return true;
  };
  int wrong = 0;
  for (unsigned code = 0; code < 1u << 24; code += code < 1u << 16 ? 1 : 7) {
    const std::string three{static_cast<char>(code >> 16), static_cast<char>(code >> 8),
                            static_cast<char>(code)};
    for (const std::string& s : {three, three.substr(1), three.substr(2), "\xF0" + three, "\xF4" + three})
      wrong += is_utf8(s) != reference(s);
  }
  CHECK_EQ(wrong, 0);
}

TEST("io: a mapped file gives its bytes, refuses ranges outside, and is kept by what reads it") {
  const Scratch scratch;
  put(scratch.file("f"), "0123456789");
  std::shared_ptr<Storage> range;
  {
    const auto file = std::make_shared<MappedFile>(scratch.file("f"));
    CHECK_EQ(file->size(), 10);
    range = file->range(2, 3);
    CHECK_EQ(file->range(10, 0)->bytes(), 0);
    for (const auto& [offset, bytes] : std::vector<std::pair<int64_t, int64_t>>{
             {-1, 1}, {0, 11}, {11, 0}, {9, 2}, {1, -1}, {5, INT64_MAX}, {INT64_MAX, 1}})
      CHECK_THROWS(Error, file->range(offset, bytes));
  }
  std::filesystem::remove(scratch.file("f"));
  CHECK_EQ(std::string(reinterpret_cast<const char*>(range->data()), 3), std::string("234"));
  CHECK(!range->writable());
}

TEST("io: only regular files are mapped, and a pipe is not waited for") {
  const Scratch scratch;
  put(scratch.file("empty"), "");
  CHECK_EQ(std::make_shared<MappedFile>(scratch.file("empty"))->size(), 0);
  CHECK_EQ(::mkfifo(scratch.file("pipe").c_str(), 0600), 0);
  for (const std::string& path :
       {scratch.file("pipe"), scratch.path, scratch.file("none"), std::string("/dev/zero")})
    CHECK_THROWS(Error, std::make_shared<MappedFile>(path));
}

TEST(
    "io: an output file has its size at once, takes writes in any order, and goes on where a run was cut "
    "off") {
  const Scratch scratch;
  const auto write = [](OutputFile& file, int64_t offset, const std::string& text) {
    file.write(offset, reinterpret_cast<const std::byte*>(text.data()), static_cast<int64_t>(text.size()));
  };
  {
    OutputFile file(scratch.file("f"), 6);
    CHECK_EQ(std::filesystem::file_size(scratch.file("f")), uintmax_t{6});
    write(file, 4, "ef");
    write(file, 0, "ab");
    file.sync();
  }
  {
    OutputFile file(scratch.file("f"), 6);
    write(file, 2, "cd");
  }
  CHECK_EQ(get(scratch.file("f")), std::string("abcdef"));
  CHECK_THROWS(Error, OutputFile(scratch.file("no/f"), 1));
  CHECK_THROWS(Error, OutputFile(scratch.file("g"), INT64_MAX));
}

}  // namespace quantaria::io
