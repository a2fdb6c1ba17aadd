#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quantaria::io {

/// One tensor of a safetensors file.
struct TensorEntry {
  std::string name;
  std::string_view dtype;  // one of the format's names: "BF16"
  std::vector<int64_t> shape;
  int64_t begin;  // bytes from the start of the file
  int64_t end;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of their data
};

/// Bits an element of a safetensors dtype takes; 0 for a name that is none.
int bits_of_stored_dtype(std::string_view dtype);

/// Reads and checks the header of a file that is given whole. Accepts what the format's specification allows
/// (any order of tensors, any alignment, extra fields, padding), refuses everything else: lengths that do not
/// fit, invalid UTF-8 or JSON, duplicate names, unknown dtypes, sizes that do not match shapes, holes and
/// overlaps, and beyond that more than 500 000 tensors or 64 dimensions. Throws ERR_FORMAT with `path` and,
/// where there is one, the tensor's name. Source: the safetensors format,
/// https://huggingface.co/docs/safetensors (header at most 100 MB).
SafetensorsHeader read_safetensors_header(const std::string& path, const std::byte* file, int64_t size);

}  // namespace quantaria::io
