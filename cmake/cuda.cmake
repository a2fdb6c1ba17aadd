# Finds nvcc if it is wanted and works; sets QUANTARIA_WITH_CUDA.
set(QUANTARIA_CUDA AUTO CACHE STRING "CUDA backend: AUTO (if nvcc works), ON (fail without it) or OFF")
set_property(CACHE QUANTARIA_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for A100 and H100, and PTX for whatever comes after.
set(QUANTARIA_CUDA_ARCHS "80-real;90-real;90-virtual" CACHE STRING "CUDA architectures")

set(QUANTARIA_WITH_CUDA OFF)
if(NOT QUANTARIA_CUDA STREQUAL OFF)
  # In $CUDACXX, not in CMAKE_CUDA_COMPILER: check_language() tries the first in a scratch project, so a broken nvcc
  # means no CUDA; the second it trusts, and a broken nvcc ends the configure.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(QUANTARIA_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
    mark_as_advanced(QUANTARIA_NVCC)
    if(QUANTARIA_NVCC)
      set(ENV{CUDACXX} "${QUANTARIA_NVCC}")
    endif()
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "${QUANTARIA_CUDA_ARCHS}")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # 12.0 is the first with C++20, 12.1 with arguments of 16 KB, 12.5 with cudaGetDriverEntryPointByVersion.
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.5)
      set(QUANTARIA_WITH_CUDA ON)
    else()
      message(WARNING "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old, 12.5 is needed: building without CUDA")
    endif()
  endif()
  if(QUANTARIA_CUDA STREQUAL ON AND NOT QUANTARIA_WITH_CUDA)
    message(FATAL_ERROR "QUANTARIA_CUDA=ON, and no nvcc of CUDA 12.5 or newer works: put it on PATH or name it in CUDACXX")
  endif()
endif()

if(QUANTARIA_WITH_CUDA)
  # After enable_language, which does not know the standards while it tries the compiler.
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20) # CMake 3.25 (Debian 12) has not heard of C++20 in nvcc
  endif()
  # --expt-relaxed-constexpr: numerics/ is constexpr C++, which kernels call. -fmad=false: a*b+c is rounded twice unless it
  # says fma, as everywhere.
  set(cuda_flags -Xcompiler=-Wall,-ffp-contract=off --expt-relaxed-constexpr -fmad=false)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND cuda_flags --compress-mode=size) # a fifth of the default's size
  endif()
  if(QUANTARIA_WERROR)
    list(APPEND cuda_flags --Werror=all-warnings -Xptxas=--warn-on-spills,-Werror)
  endif()
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
endif()
