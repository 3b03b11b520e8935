// The nonlinearities on the GPU, by the formulas of the CPU kernels: each is x times a cumulative distribution c(x),
// with one exp per element, and has the derivative c + x c'.
//
//   gelu      c = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = sigmoid(2 u)
//   gelu_erf  c = Phi, the standard normal distribution
//   silu      c = sigmoid(x)
#include "kernels/activation.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"

namespace choir::kernels {

/// c(x) and x c'(x). They may be numbers if x is NaN: forward multiplies by x, which keeps the NaN.
struct Gate {
  float value, slope;
};

/// `x` clamped to [-bound, bound]; outside, a gate is 0 or 1 and its slope 0.
__device__ inline float limit(float x, float bound) { return fminf(fmaxf(x, -bound), bound); }

/// The divisor is below 2^126, the limit of __fdividef.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-limit(x, 87))); }

struct Gelu {
  static __device__ Gate gate(float x) {
    constexpr double linear = 1.5957691216057308, cubic = linear * 0.044715;  // 2 u = linear x + cubic x^3
    constexpr auto c1 = static_cast<float>(linear), c3 = static_cast<float>(cubic);
    x = limit(x, 10);  // |2 u| < 87.32: the divisor stays below 2^126, the limit of __fdividef
    const float x2 = x * x;
    const float value = __fdividef(1.0f, 1.0f + expf(-x * fmaf(c3, x2, c1)));
    return {value, fmaf(-value, value, value) * (x * fmaf(3 * c3, x2, c1))};
  }
};

struct Silu {
  static __device__ Gate gate(float x) {
    const float value = sigmoid(x);
    return {value, limit(x, 90) * fmaf(-value, value, value)};
  }
};

struct GeluErf {
  /// Phi(-a), a >= 0, given e = exp(-a^2 / 2): Phi(-a) = e t p(t), t = 1 / (1 + 0.27 a), p the polynomial through erfcx
  /// at Chebyshev nodes of a in [0, 13.5]: relative error 3e-8 before rounding.
  static __device__ float tail(float a, float e) {
    const float t = __fdividef(1.0f, fmaf(a, 0.27f, 1.0f));
    float p = 0.028988641399074037f;
    p = fmaf(p, t, -0.12666124548562419f);
    p = fmaf(p, t, 0.1702335345079443f);
    p = fmaf(p, t, -0.06981608446125254f);
    p = fmaf(p, t, 0.1083032538437199f);
    p = fmaf(p, t, 0.071824396449443f);
    p = fmaf(p, t, 0.10187247660469138f);
    p = fmaf(p, t, 0.10753384691535002f);
    p = fmaf(p, t, 0.10772119085660924f);
    return e * t * p;
  }

  static __device__ Gate gate(float x) {
    x = limit(x, 30);
    const float e = expf(x * x * -0.5f);
    const float below = tail(fabsf(x), e);
    return {x < 0 ? below : 1 - below, x * e * 0.3989422804014327f};
  }
};

/// y = x c(x)
template <class Kind, class T, int N>
__global__ void activation_forward_kernel(const T* x, T* y, std::int64_t count) {
  cuda::for_each_pack<N>(count, [=]<int M>(std::int64_t i) {
    cuda::Pack<M> values = cuda::load<M>(x + i);
#pragma unroll
    for (int j = 0; j < M; ++j) values.value[j] *= Kind::gate(values.value[j]).value;
    cuda::store(values, y + i);
  });
}

/// dx = dy (c + x c')
template <class Kind, class T, int N>
__global__ void activation_backward_kernel(const T* dy, const T* x, T* dx, std::int64_t count) {
  cuda::for_each_pack<N>(count, [=]<int M>(std::int64_t i) {
    const cuda::Pack<M> values = cuda::load<M>(x + i);
    cuda::Pack<M> slope = cuda::load<M>(dy + i);
#pragma unroll
    for (int j = 0; j < M; ++j) {
      const Gate gate = Kind::gate(values.value[j]);
      slope.value[j] *= gate.value + gate.slope;
    }
    cuda::store(slope, dx + i);
  });
}

/// y = silu(gate) up. N divides width.
template <class T, int N>
__global__ void gated_forward_kernel(const T* x, T* y, std::int64_t rows, std::int64_t width) {
  const std::int64_t packs = width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < rows * packs; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / packs, column = i % packs * N;
    const T* gate = x + row * 2 * width + column;
    const cuda::Pack<N> input = cuda::load<N>(gate);
    cuda::Pack<N> up = cuda::load<N>(gate + width);
#pragma unroll
    for (int j = 0; j < N; ++j) up.value[j] *= input.value[j] * Silu::gate(input.value[j]).value;
    cuda::store(up, y + row * width + column);
  }
}

/// dup = dy silu(gate), dgate = dy up silu'(gate). N divides width.
template <class T, int N>
__global__ void gated_backward_kernel(const T* dy, const T* x, T* dx, std::int64_t rows, std::int64_t width) {
  const std::int64_t packs = width / N;
  for (std::int64_t i = cuda::thread_of_grid(); i < rows * packs; i += cuda::threads_of_grid()) {
    const std::int64_t row = i / packs, column = i % packs * N;
    const T* gate = x + row * 2 * width + column;
    cuda::Pack<N> dgate = cuda::load<N>(gate);
    cuda::Pack<N> dup = cuda::load<N>(gate + width);
    const cuda::Pack<N> slope = cuda::load<N>(dy + row * width + column);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float input = dgate.value[j];
      const Gate silu = Silu::gate(input);
      dgate.value[j] = slope.value[j] * dup.value[j] * (silu.value + silu.slope);
      dup.value[j] = slope.value[j] * (input * silu.value);
    }
    T* to = dx + row * 2 * width + column;
    cuda::store(dgate, to);
    cuda::store(dup, to + width);
  }
}

template <class T>
void activation_forward(Cuda cuda, const ActivationForward<T>& args) {
  const std::int64_t count = args.rows * args.width;
  const bool gated = args.kind == Activation::silu_gated;
  cuda::with_pack_size<T>(gated ? args.width : 0, {args.x, args.y}, [&]<int N>() {
    const int blocks = cuda::blocks_for_elements<N>(cuda, count), threads = cuda::threads_per_block;
    switch (args.kind) {
      case Activation::gelu:
        activation_forward_kernel<Gelu, T, N><<<blocks, threads, 0, cuda.stream>>>(args.x, args.y, count);
        break;
      case Activation::gelu_erf:
        activation_forward_kernel<GeluErf, T, N><<<blocks, threads, 0, cuda.stream>>>(args.x, args.y, count);
        break;
      case Activation::silu_gated:
        gated_forward_kernel<T, N><<<blocks, threads, 0, cuda.stream>>>(args.x, args.y, args.rows, args.width);
        break;
    }
  });
  cuda::check_launch("activation_forward");
}

template <class T>
void activation_backward(Cuda cuda, const ActivationBackward<T>& args) {
  const std::int64_t count = args.rows * args.width;
  const bool gated = args.kind == Activation::silu_gated;
  cuda::with_pack_size<T>(gated ? args.width : 0, {args.dy, args.x, args.dx}, [&]<int N>() {
    const int blocks = cuda::blocks_for_elements<N>(cuda, count), threads = cuda::threads_per_block;
    switch (args.kind) {
      case Activation::gelu:
        activation_backward_kernel<Gelu, T, N><<<blocks, threads, 0, cuda.stream>>>(args.dy, args.x, args.dx, count);
        break;
      case Activation::gelu_erf:
        activation_backward_kernel<GeluErf, T, N><<<blocks, threads, 0, cuda.stream>>>(args.dy, args.x, args.dx, count);
        break;
      case Activation::silu_gated:
        gated_backward_kernel<T, N>
            <<<blocks, threads, 0, cuda.stream>>>(args.dy, args.x, args.dx, args.rows, args.width);
        break;
    }
  });
  cuda::check_launch("activation_backward");
}

template void activation_forward(Cuda, const ActivationForward<float>&);
template void activation_forward(Cuda, const ActivationForward<bf16>&);
template void activation_backward(Cuda, const ActivationBackward<float>&);
template void activation_backward(Cuda, const ActivationBackward<bf16>&);

}  // namespace choir::kernels
