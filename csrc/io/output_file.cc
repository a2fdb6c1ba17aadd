#include "io/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace quantaria::io {

OutputFile::OutputFile(const std::string& path, int64_t bytes)
    : path_(path), fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ < 0) fail(ErrorCode::io, path, ": ", std::strerror(errno));
  if (::ftruncate(fd_, bytes) != 0) {
    const int error = errno;
    ::close(fd_);
    fail(ErrorCode::io, path, ": ", std::strerror(error));
  }
}

OutputFile::~OutputFile() { ::close(fd_); }

void OutputFile::write(int64_t offset, const std::byte* data, int64_t bytes) {
  constexpr int64_t kPiece = int64_t{16} << 20;  // one system call cannot be interrupted
  for (int64_t done = 0; done < bytes;) {
    const std::lock_guard lock(writing_);
    const ssize_t n =
        ::pwrite(fd_, data + done, static_cast<size_t>(std::min(kPiece, bytes - done)), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorCode::io, path_, ": ", std::strerror(errno));
    if (n == 0) fail(ErrorCode::io, path_, ": nothing more can be written");
    done += n;
  }
}

void OutputFile::sync() {
  if (::fdatasync(fd_) != 0) fail(ErrorCode::io, path_, ": ", std::strerror(errno));
}

}  // namespace quantaria::io
