// The emulator against what was recorded on GPUs: test/golden/*.txt.
#include <dirent.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/runtime/device.h"
#include "simt/runtime/controls.h"
#include "test/golden/collectives.h"

namespace {

using namespace quantaria;

std::vector<std::string> recordings() {
  std::vector<std::string> files;
  DIR* const folder = opendir(QUANTARIA_GOLDEN_FOLDER);
  if (folder == nullptr) return files;
  while (const dirent* entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (name.ends_with(".txt")) files.push_back(std::string(QUANTARIA_GOLDEN_FOLDER) + "/" + name);
  }
  closedir(folder);
  return files;
}

std::vector<golden::Vector> emulated() {
  static const cuda::Kernels none{};
  simt::runtime::become({});
  cuda::RuntimeDevice device(cuda::discover("80-real").usable.at(0), none);
  return golden::vectors(device);
}

TEST("golden: the emulator gives what GPUs gave") {
  const std::vector<std::string> files = recordings();
  if (files.empty()) std::cout << "  skipped: golden vectors are not recorded yet (test/golden/README.md)\n";
  for (const std::string& file : files) {
    std::stringstream text;
    text << std::ifstream(file).rdbuf();
    const golden::Recording recording = golden::recording_of(text.str());
    CHECK(recording.device.find("emulated") == std::string::npos);
    const std::vector<golden::Vector> now = emulated();
    CHECK_EQ(now.size(), recording.all.size());
    for (size_t i = 0; i < std::min(now.size(), recording.all.size()); ++i) {
      CHECK_EQ(now[i].name, recording.all[i].name);
      CHECK_EQ(golden::difference(now[i], recording.all[i]), "");
    }
  }
}

TEST("golden: what is written is read again, and a difference beyond rounding is told") {
  const std::vector<golden::Vector> now = emulated();
  golden::Recording again = golden::recording_of(golden::text_of("a device", now));
  CHECK_EQ(again.device, "a device");
  CHECK_EQ(again.all.size(), now.size());
  for (size_t i = 0; i < now.size(); ++i) {
    CHECK_EQ(golden::difference(now[i], again.all[i]), "");
    const bool rounded = !now[i].exact;
    again.all[i].words[0] ^= 1;  // the last bit of a value
    CHECK_EQ(golden::difference(now[i], again.all[i]).empty(), rounded);
    again.all[i].words[0] ^= 1u << 23 | 1;  // twice or half as much
    CHECK(!golden::difference(now[i], again.all[i]).empty());
  }
  CHECK_THROWS(Error, golden::recording_of("ldmatrix exact 0"));
  CHECK_THROWS(Error, golden::recording_of("device x\nldmatrix roughly 0"));
  CHECK_THROWS(Error, golden::recording_of("device x\nldmatrix exact 0 zero"));
}

}  // namespace
