#pragma once

#include <string>
#include <string_view>

#include "cuda/cublaslt/api.h"
#include "cuda/status.h"

/// The vendor's library for large dense products, where a user asks for it by QUANTARIA_CUBLASLT: `1` for the
/// one that the loader finds, or the path of one. Never by itself: its sums differ from our kernels' in their
/// last bits, and what comes out must not depend on what is installed.
namespace quantaria::cuda::cublaslt {

struct Library {
  Functions call;
  std::string path;
  std::string version;  // "13.1.1"
};

/// `setting` as in QUANTARIA_CUBLASLT. ERR_NATIVE_LOAD, saying why, if it cannot be had: not there, or of
/// another version than 12 or 13. It stays in the process.
Library load(std::string_view setting);

/// What this process uses: null if QUANTARIA_CUBLASLT is unset, empty or 0. Loaded when first asked for;
/// throws what load() threw.
const Library* wanted();

/// The same for `cudaStatus()`.
VendorLibrary report();

}  // namespace quantaria::cuda::cublaslt
