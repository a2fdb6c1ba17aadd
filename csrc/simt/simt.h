#pragma once

// The one header that kernels include. nvcc compiles them against simt/cuda, thin wrappers of PTX; any other
// C++ compiler against simt/host, the same names over an emulator, in which every CUDA thread is a fiber. So
// the very file that runs on a GPU runs, and is tested, on machines without one.
//
// What kernels keep to, so that both sides take them:
//  - no asm, <<<>>>, __CUDA_ARCH__ or vendor headers: what is missing is added to both sides;
//  - shared memory is one struct, simt::shared<Layout>(); `__shared__` does not exist on the host;
//  - blocks of whole warps; whoever waits in a loop waits through simt::load_acquire;
//  - 16-byte pieces of global memory go through simt::load, simt::store or cp_async, which the host checks.

#include "simt/values.h"

#if defined(__CUDACC__)
#include "simt/cuda/arithmetic.h"
#include "simt/cuda/async_copy.h"
#include "simt/cuda/launch.h"
#include "simt/cuda/matrix.h"
#include "simt/cuda/memory.h"
#include "simt/cuda/sync.h"
#else
#include "simt/host/arithmetic.h"
#include "simt/host/async_copy.h"
#include "simt/host/launch.h"
#include "simt/host/matrix.h"
#include "simt/host/memory.h"
#include "simt/host/sync.h"
#endif
