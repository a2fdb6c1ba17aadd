#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

namespace quantaria::io {

/// A file of known size that is written in any order. Nobody should see it under its final name before it
/// is complete: the caller writes under a temporary one and renames.
class OutputFile {
 public:
  /// Creates the file with `bytes` bytes, or opens the one that an interrupted run left behind; what it holds
  /// stays. ERR_IO if it cannot be written.
  OutputFile(const std::string& path, int64_t bytes);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// ERR_IO, with the system's reason, if not all bytes could be written.
  void write(int64_t offset, const std::byte* data, int64_t bytes);
  /// Returns when what was written is on the disk.
  void sync();

 private:
  std::string path_;
  int fd_;
  // The system lets one write at a time into a file, and the others spin for it on a core that has work to
  // do.
  std::mutex writing_;
};

}  // namespace quantaria::io
