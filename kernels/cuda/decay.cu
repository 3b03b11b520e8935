// The decays of linear attention on the GPU, element by element.
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/decay.h"

namespace choir::kernels {

__global__ void decay_kernel(Decay<float> args) {
  for (std::int64_t i = cuda::thread_of_grid(); i < args.rows * args.heads; i += cuda::threads_of_grid()) {
    const RowMap::Place at = args.map.place(i / args.heads);
    const bool first =
        args.documents && args.documents[at.sequence * args.map.length + at.position].begin == at.position;
    const float z = args.z[i];
    const float log_sigmoid = fminf(z, 0.0f) - log1pf(expf(-fabsf(z)));
    args.log_decay[i] = first ? -INFINITY : log_sigmoid / static_cast<float>(args.root);
  }
}

__global__ void decay_gradient_kernel(DecayGradient<float> args) {
  const float root = static_cast<float>(args.root);
  for (std::int64_t i = cuda::thread_of_grid(); i < args.count; i += cuda::threads_of_grid()) {
    const float g = args.log_decay[i];
    args.dz[i] = g == -INFINITY ? 0.0f : -args.dlog_decay[i] * expm1f(root * g) / root;
  }
}

template <class A>
void decay(Cuda cuda, const Decay<A>& args) {
  decay_kernel<<<cuda::blocks_for_elements<1>(cuda, args.rows * args.heads), cuda::threads_per_block, 0, cuda.stream>>>(
      args);
  cuda::check_launch("decay");
}

template <class A>
void decay_gradient(Cuda cuda, const DecayGradient<A>& args) {
  decay_gradient_kernel<<<cuda::blocks_for_elements<1>(cuda, args.count), cuda::threads_per_block, 0, cuda.stream>>>(
      args);
  cuda::check_launch("decay_gradient");
}

template void decay(Cuda, const Decay<float>&);
template void decay_gradient(Cuda, const DecayGradient<float>&);

}  // namespace choir::kernels
