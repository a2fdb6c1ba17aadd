#pragma once

#include <napi.h>

#include <set>

namespace quantaria::cuda {
class Device;
}

namespace quantaria::addon {

void define_graphs(Napi::Env env, Napi::Object exports);

/// Ends captures that nobody will end any more, as their environment does: devices are the process's, and
/// would note down for ever what others queue.
void abandon_captures(const std::set<cuda::Device*>& captures);

}  // namespace quantaria::addon
