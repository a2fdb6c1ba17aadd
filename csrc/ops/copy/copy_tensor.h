#pragma once

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace quantaria {

/// target = source, cast to target's dtype, for tensors of one shape with any number of dimensions and any
/// strides; the rules are those of ops::copy_cast. Runs at once, on the caller's thread and the pool.
void copy_tensor(ThreadPool& pool, const Tensor& source, const Tensor& target);

/// The same by the device that both live on, in the body of an operation on its queue.
void copy_on_device(const Tensor& source, const Tensor& target);

}  // namespace quantaria
