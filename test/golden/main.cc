// Prints the golden vectors of the first CUDA device that can be used. `quantaria_golden >
// test/golden/<device>.txt` on a GPU records them.
#include <exception>
#include <iostream>

#include "cuda/status.h"
#include "test/golden/collectives.h"

int main() {
  try {
    const auto& devices = quantaria::cuda::devices();
    if (devices.empty()) {
      std::cerr << "no CUDA device: " << quantaria::cuda::status().reason << "\n";
      return 3;
    }
    quantaria::cuda::Device& device = *devices.front();
    std::cout << quantaria::golden::text_of(device.name(), quantaria::golden::vectors(device)) << std::flush;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
