#include "core/error.h"

namespace quantaria {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::argument:
      return "ERR_ARGUMENT";
    case ErrorCode::shape:
      return "ERR_SHAPE";
    case ErrorCode::dtype:
      return "ERR_DTYPE";
    case ErrorCode::device:
      return "ERR_DEVICE";
    case ErrorCode::disposed:
      return "ERR_DISPOSED";
    case ErrorCode::format:
      return "ERR_FORMAT";
    case ErrorCode::unsupported:
      return "ERR_UNSUPPORTED";
    case ErrorCode::out_of_memory:
      return "ERR_OUT_OF_MEMORY";
    case ErrorCode::cuda:
      return "ERR_CUDA";
    case ErrorCode::aborted:
      return "ERR_ABORTED";
    case ErrorCode::io:
      return "ERR_IO";
    case ErrorCode::native_load:
      return "ERR_NATIVE_LOAD";
  }
  return "ERR_ARGUMENT";
}

}  // namespace quantaria
