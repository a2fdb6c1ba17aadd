#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace quantaria {

/// The codes of the public contract; JavaScript sees them as `QuantariaError.code`.
enum class ErrorCode {
  argument,
  shape,
  dtype,
  device,
  disposed,
  format,
  unsupported,
  out_of_memory,
  cuda,
  aborted,
  io,
  native_load,
};

/// "ERR_SHAPE" and so on.
const char* code_name(ErrorCode code);

/// What every failure inside the library is thrown as. The message names the argument, what came and
/// what was expected; the addon turns it into a JavaScript error with the same code.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

/// Throws an Error whose message is its parts written one after the other.
template <class... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(code, message.str());
}

}  // namespace quantaria
