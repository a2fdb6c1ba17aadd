// Prints the golden vectors of the first CUDA device that can be used. `quantaria_golden >
// test/golden/<device>.txt` on a GPU records them.
#include <exception>
#include <iostream>

#include "cuda/runtime/device.h"
#include "test/golden/collectives.h"

int main() {
  try {
    quantaria::cuda::Discovery found = quantaria::cuda::discover(QUANTARIA_CUDA_ARCHITECTURES);
    if (found.usable.empty()) {
      std::cerr << "no CUDA device: " << found.status.reason << "\n";
      return 3;
    }
    const quantaria::cuda::Kernels none{};
    quantaria::cuda::RuntimeDevice device(found.usable.front(), none);
    std::cout << quantaria::golden::text_of(device.name(), quantaria::golden::vectors(device)) << std::flush;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
