#include "cpu/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include "core/error.h"

namespace quantaria {
namespace {

Isa from_environment() {
  const char* name = std::getenv("QUANTARIA_ISA");
  for (const Isa isa : kIsas)
    if (name != nullptr && name_of(isa) == name) return std::min(isa, detected_isa());
  return detected_isa();
}

std::atomic<Isa>& choice() {
  static std::atomic<Isa> isa{from_environment()};
  return isa;
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::avx512bf16:
      return "avx512bf16";
  }
  return "scalar";
}

Isa detected_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (avx2 && vnni && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx2 && vnni) return Isa::avx512vnni;
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa selected_isa() { return choice().load(); }

void select_isa(Isa isa) {
  if (isa > detected_isa())
    fail(ErrorCode::unsupported, "instruction set ", name_of(isa), " asked for, but this machine has ",
         name_of(detected_isa()));
  choice().store(isa);
}

}  // namespace quantaria
