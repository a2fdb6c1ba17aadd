#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/device.h"

/// What every wrapper of csrc/simt gives for fixed inputs: recorded on a GPU, it is what the emulator has to
/// give ever after.
namespace quantaria::golden {

struct Vector {
  std::string name;
  /// Whether all that computes it rounds at most once, so that it is the same everywhere. Otherwise the words
  /// are pairs of floats, a value and the sum of its terms' magnitudes: what it may be off by grows with
  /// that.
  bool exact;
  std::vector<uint32_t> words;
};

/// Runs each of them on the device.
std::vector<Vector> vectors(cuda::Device& device);

/// Lines of a name, "exact" or "rounded", and the words in hexadecimal, after one of the device's name.
std::string text_of(const std::string& device, const std::vector<Vector>& all);

struct Recording {
  std::string device;
  std::vector<Vector> all;
};
/// Throws ERR_FORMAT for anything that text_of has not written.
Recording recording_of(const std::string& text);

/// Why `got` is not what was recorded, or nothing. Values that are not exact may be off by what a tensor
/// core's adder loses: each of 17 terms is cut off at 2^-23 of the largest.
std::string difference(const Vector& got, const Vector& recorded);

}  // namespace quantaria::golden
