// Choir's own flash attention on CUDA, for T = f32 and bf16. kernels/attention.h defines what it computes.
//
// Any head width up to 256, any strides and alignment, every mask and group. The same call gives the same bits in every
// run: no atomics. The workspace is linear in the sequence length. f32 uses f32 multiply-adds, never TF32.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/types.h"

namespace choir::kernels::cuda {

inline constexpr std::int64_t flash_widest_head = 256;

/// Need no GPU.
template <class T>
std::int64_t flash_forward_workspace_bytes(const AttentionShape&);
template <class T>
std::int64_t flash_backward_workspace_bytes(const AttentionShape&);

/// Throw Failure (kernels/cuda/failure.h) if the shape is impossible (a query head beyond the key/value heads, a head
/// wider than flash_widest_head) or a launch is refused.
template <class T>
void flash_forward(Cuda, const AttentionForward<T>&);
template <class T>
void flash_backward(Cuda, const AttentionBackward<T>&);

}  // namespace choir::kernels::cuda
