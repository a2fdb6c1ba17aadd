#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/dtype.h"
#include "core/error.h"

namespace quantaria {

/// The bytes behind one or more tensors: a block of a device's allocator or a part of a mapped file.
/// Shared by all views of it and by the work that is queued on it, so that disposing a handle while
/// work is under way is safe.
class Storage {
 public:
  /// `owner` keeps the bytes alive and gives them back when the last reference goes.
  Storage(std::shared_ptr<void> owner, std::byte* data, int64_t bytes, bool writable)
      : owner_(std::move(owner)), data_(data), bytes_(bytes), writable_(writable) {}
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool writable() const { return writable_; }

  /// A share in the bytes, for one who may look at them out of queue order: a JavaScript handle, a write to a
  /// file.
  std::shared_ptr<const void> share() const { return share_; }
  /// Whether more than one has a share; else its owner may put the bytes into another order.
  bool shared() const { return share_.use_count() > 2; }

  /// Why the contents are not valid: the operation that should have written them failed, or one that it
  /// depends on. Set and read in queue order.
  const std::shared_ptr<const Error>& failure() const { return failure_; }
  void set_failure(std::shared_ptr<const Error> failure) { failure_ = std::move(failure); }

  /// Whether a bit-packed weight's rows are interleaved in tiles, as products want them, instead of one after
  /// the other. Set and read in queue order.
  bool tiled() const { return tiled_; }
  void set_tiled(bool tiled) { tiled_ = tiled; }

  /// Of such a weight in tiles: the dtype of its scales, which are kept narrow where that loses nothing.
  DType scale_dtype() const { return scale_dtype_; }
  void set_scale_dtype(DType dtype) { scale_dtype_ = dtype; }

 private:
  std::shared_ptr<void> owner_;
  std::byte* data_;
  int64_t bytes_;
  bool writable_;
  const std::shared_ptr<const void> share_ = std::make_shared<char>();
  std::shared_ptr<const Error> failure_;
  bool tiled_ = false;
  DType scale_dtype_ = DType::float32;
};

}  // namespace quantaria
