// Times of a GPU's work, by its own events: the host's clock would count how long it takes to enqueue and to wait.
#pragma once

#include <functional>

struct CUstream_st;

namespace choir::cuda {

/// The seconds between the beginning and the end of what `work` enqueues on `stream`. Waits for it.
double seconds_of(CUstream_st* stream, const std::function<void()>& work);

}  // namespace choir::cuda
