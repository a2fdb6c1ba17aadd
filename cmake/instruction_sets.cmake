# Files that are compiled for more than the baseline processor, by the end of their names:
#   *_isa.cc                     once for each instruction set, with QUANTARIA_ISA=scalar|avx2|avx512
#   *_scalar.cc, *_avx2.cc, ...  once, with the flags of the instruction set they are written for
# They may include plain headers only: an inline function of the standard library compiled here is a weak symbol
# that the linker may pick for everyone (scripts/check-isa-symbols.cjs fails the build on one).
set(flags_scalar)
set(flags_avx2 -mavx2 -mfma -mf16c -mbmi2)
set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
set(flags_avx512vnni ${flags_avx512} -mavx512vnni)
set(flags_avx512bf16 ${flags_avx512vnni} -mavx512bf16)

# No fused or reordered arithmetic but what a file spells out: every instruction set gives the same bits.
set(kernel_flags -fno-math-errno -fno-trapping-math)
if(NOT QUANTARIA_SANITIZE)
  list(APPEND kernel_flags -O3) # instrumented, unrolled kernels would take minutes to compile
elseif(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # Clears the upper halves of vectors at a function's end, which g++ leaves out at -O1: SSE code after it takes four times
  # as long.
  list(APPEND kernel_flags -fexpensive-optimizations)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # g++ 12 takes the undefined upper halves inside its own intrinsics for our mistake.
  list(APPEND kernel_flags -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

# Takes the kernels out of the list `sources`, makes an object library kernels_<set> for each instruction set that has
# any, and lists those in `kernel_libraries`. Elsewhere than on x86-64 only the scalar ones are left.
set(in_every_set ${sources})
list(FILTER in_every_set INCLUDE REGEX "_isa\\.cc$")
list(FILTER sources EXCLUDE REGEX "_isa\\.cc$")
foreach(set scalar avx2 avx512 avx512vnni avx512bf16)
  set(kernels ${sources})
  list(FILTER kernels INCLUDE REGEX "_${set}\\.cc$")
  list(FILTER sources EXCLUDE REGEX "_${set}\\.cc$")
  if(set MATCHES "^(scalar|avx2|avx512)$")
    list(APPEND kernels ${in_every_set})
  endif()
  if(kernels AND (QUANTARIA_X86 OR set STREQUAL scalar))
    add_library(kernels_${set} OBJECT ${kernels})
    target_compile_definitions(kernels_${set} PRIVATE QUANTARIA_ISA=${set})
    target_compile_options(kernels_${set} PRIVATE ${kernel_flags} ${flags_${set}})
    if(QUANTARIA_X86 AND set STREQUAL scalar)
      target_compile_options(kernels_${set} PRIVATE $<$<CONFIG:Release>:-O2>) # for processors before 2013: unrolled it is 0.4 MB more
    endif()
    list(APPEND kernel_libraries kernels_${set})
  endif()
endforeach()
