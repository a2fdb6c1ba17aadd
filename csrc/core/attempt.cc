#include "core/attempt.h"

#include <new>

namespace quantaria {

std::shared_ptr<const Error> failure_of(const std::function<void()>& body) {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return std::make_shared<Error>(error);
  } catch (const std::bad_alloc&) {
    return std::make_shared<Error>(ErrorCode::out_of_memory, "out of memory on the device queue");
  } catch (const std::exception& error) {
    return std::make_shared<Error>(ErrorCode::unsupported, error.what());
  }
}

}  // namespace quantaria
