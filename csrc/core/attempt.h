#pragma once

#include <functional>
#include <memory>

#include "core/error.h"

namespace quantaria {

/// Runs `body` and returns what it threw as the library's own error, or null: what crosses threads is a
/// value.
std::shared_ptr<const Error> failure_of(const std::function<void()>& body);

}  // namespace quantaria
