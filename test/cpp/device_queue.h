#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>

#include "core/attempt.h"
#include "core/device.h"
#include "core/error.h"

/// What goes wrong on a device's queue, for tests.
namespace quantaria::test {

/// What `task` threw on the device's queue, or null.
inline std::shared_ptr<const Error> on_queue(Device& device, const std::function<void()>& task) {
  std::promise<std::shared_ptr<const Error>> done;
  device.post([&] { done.set_value(failure_of(task)); });
  return done.get_future().get();
}

/// The message of an error of this code; something else if it has another one, or there is none.
inline std::string message_of(const std::shared_ptr<const Error>& error, ErrorCode code) {
  if (!error) return "no error";
  return error->code() == code ? error->what() : std::string("another code: ") + error->what();
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace quantaria::test
