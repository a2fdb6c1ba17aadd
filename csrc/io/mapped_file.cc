#include "io/mapped_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace quantaria::io {
namespace {

/// Closes a descriptor at the end of a scope.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

/// Holds a range in use and gives its whole pages up at the end; a neighbour that still needs the page on the
/// border only faults it in again.
class ReleasedRange {
 public:
  ReleasedRange(std::shared_ptr<MappedFile> file, std::byte* begin, int64_t bytes)
      : file_(std::move(file)), begin_(begin), bytes_(bytes) {}
  ReleasedRange(const ReleasedRange&) = delete;
  ReleasedRange& operator=(const ReleasedRange&) = delete;

  ~ReleasedRange() {
    static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto first = (reinterpret_cast<uintptr_t>(begin_) + page - 1) / page * page;
    const auto last = (reinterpret_cast<uintptr_t>(begin_) + static_cast<uintptr_t>(bytes_)) / page * page;
    if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }

 private:
  std::shared_ptr<MappedFile> file_;
  std::byte* begin_;
  int64_t bytes_;
};

/// Files of memory-backed file systems: their mapped pages count as shared memory of this process.
bool lies_in_memory(int fd) {
  struct statfs system{};
  return ::fstatfs(fd, &system) == 0 && (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a pipe must not wait for its other end.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail(ErrorCode::io, path, ": ", std::strerror(errno));
  struct stat status{};
  if (::fstat(file.fd, &status) != 0) fail(ErrorCode::io, path, ": ", std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::io, path, ": not a regular file");
  size_ = status.st_size;
  if (size_ == 0) return;
  void* address =
      ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE | MAP_NORESERVE, file.fd, 0);
  if (address == MAP_FAILED) fail(ErrorCode::io, path, ": cannot be mapped: ", std::strerror(errno));
  data_ = static_cast<std::byte*>(address);
  in_memory_ = lies_in_memory(file.fd);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(size_));
}

std::shared_ptr<Storage> MappedFile::range(int64_t offset, int64_t bytes) {
  if (offset < 0 || bytes < 0 || offset > size_ || bytes > size_ - offset)
    fail(ErrorCode::format, path_, ": ", bytes, " bytes at ", offset, " of a file of ", size_);
  std::byte* begin = data_ + offset;
  // Elsewhere the pages are the page cache's, and giving up each range would cost a tenth of what quantizing
  // it does.
  std::shared_ptr<void> owner = shared_from_this();
  if (in_memory_) owner = std::make_shared<ReleasedRange>(shared_from_this(), begin, bytes);
  return std::make_shared<Storage>(std::move(owner), begin, bytes, false);
}

}  // namespace quantaria::io
