#include "test/golden/collectives.h"

#include <bit>
#include <cmath>
#include <sstream>

#include "core/error.h"

namespace quantaria::golden {

std::string text_of(const std::string& device, const std::vector<Vector>& all) {
  std::ostringstream text;
  text << "device " << device << "\n";
  for (const Vector& vector : all) {
    text << vector.name << (vector.exact ? " exact" : " rounded") << std::hex;
    for (const uint32_t word : vector.words) text << ' ' << word;
    text << std::dec << "\n";
  }
  return text.str();
}

Recording recording_of(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  Recording recording;
  if (!std::getline(lines, line) || !line.starts_with("device "))
    fail(ErrorCode::format, "a recording starts with its device");
  recording.device = line.substr(7);
  while (std::getline(lines, line)) {
    std::istringstream parts(line);
    Vector vector{};
    std::string kind;
    if (!(parts >> vector.name >> kind) || (kind != "exact" && kind != "rounded"))
      fail(ErrorCode::format, "not a line of a recording: ", line);
    vector.exact = kind == "exact";
    for (uint32_t word = 0; parts >> std::hex >> word;) vector.words.push_back(word);
    if (!parts.eof()) fail(ErrorCode::format, "not a word in the recording of ", vector.name);
    recording.all.push_back(std::move(vector));
  }
  return recording;
}

std::string difference(const Vector& got, const Vector& recorded) {
  std::ostringstream text;
  text << got.name << ": ";
  if (got.exact != recorded.exact || got.words.size() != recorded.words.size()) {
    text << "another kind or number of words was recorded";
    return text.str();
  }
  constexpr double kLost = 17 * 0x1p-23;
  for (size_t i = 0; i < got.words.size(); ++i) {
    if (got.words[i] == recorded.words[i]) continue;
    if (!got.exact && i % 2 == 0) {
      const double off = double{std::bit_cast<float>(got.words[i])} - std::bit_cast<float>(recorded.words[i]);
      if (std::abs(off) <= kLost * std::bit_cast<float>(recorded.words[i + 1])) continue;
    }
    text << "word " << i << " is " << std::hex << got.words[i] << ", recorded " << recorded.words[i];
    return text.str();
  }
  return {};
}

}  // namespace quantaria::golden
