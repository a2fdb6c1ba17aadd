#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/storage.h"

namespace quantaria::io {

/// A whole file, mapped read-only. Pages are read at their first use and belong to the page cache, so a
/// checkpoint of any size can be open. The file must not be cut short meanwhile: the system answers the
/// use of a page that is gone with SIGBUS.
class MappedFile : public std::enable_shared_from_this<MappedFile> {
 public:
  /// ERR_IO if the file cannot be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

  /// The bytes [offset, offset + bytes) as a storage. Of a file that lies in memory (tmpfs), the pages leave
  /// this process's account when the last reference to the storage goes.
  std::shared_ptr<Storage> range(int64_t offset, int64_t bytes);

 private:
  std::string path_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  bool in_memory_ = false;
};

}  // namespace quantaria::io
