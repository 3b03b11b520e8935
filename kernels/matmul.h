// Matrix products: the three products of a linear layer, and the epilogues that a product can compute with them.
//
//   forward          y [N, out]   = x [N, in] w^T + bias        a = x,  b = w, transpose_b
//   input gradient   dx [N, in]   = dy [N, out] w               a = dy, b = w
//   weight gradient  dw [out, in] += dy^T x                     a = dy, transpose_a, b = x, accumulate
//
// CPU: oneDNN, its primitives cached by shape in MatmulPlans; or by Cpu::unit products in vectors, for all but few rows
// (kernels/cpu/vector_matmul.h), or those of bf16 on tiles (kernels/cpu/tile_matmul.h); f64 (tests only) and vectors
// with gaps are a plain loop.
// CUDA: cuBLASLt, its plans cached by shape; f32 is f32 (never TF32), bf16 sums in f32. cuBLASLt and products in vectors
// and on tiles compute epilogues: matmul_fuses() says which; the others run the kernels of activation.h and reduce.h.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/types.h"

namespace choir::kernels {

/// What a product does with its sums before it stores them. gelu is Activation::gelu, the tanh form.
///
///   none           c = sum
///   gelu           before = sum, c = gelu(sum)                                 of the sum before it is rounded to Out
///   gelu_gradient  c = sum gelu'(before)                                       without bias
///   bias_gradient  c = sum, bias_gradient [m] += sum over k of op(a) [m, k]    without bias; c is f32
///
/// In a weight gradient a is dy transposed, and that last sum is over the rows of dy: the gradient of the bias.
enum class Epilogue : std::uint8_t { none, gelu, gelu_gradient, bias_gradient };

/// c [m, n] = epilogue(op(a) [m, k] op(b) [k, n] + bias [n] (+ c if `accumulate`)). Row-major; sums in
/// Accumulate<In>.
///
/// (In, Out) is (f32, f32), (bf16, bf16), (bf16, f32) or (f64, f64).
template <class In, class Out>
struct Matmul {
  const In* a;                ///< [m, k], or [k, m] if transpose_a
  const In* b;                ///< [k, n], or [n, k] if transpose_b
  Out* c;                     ///< [m, n]
  const Out* bias = nullptr;  ///< [n] at a multiple of 16 bytes, or null; in the type that cuBLASLt reads
  std::int64_t m, n, k;
  std::int64_t a_stride, b_stride, c_stride;  ///< elements from one stored row to the next
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false;  ///< add to c instead of overwriting it; not with gelu and gelu_gradient
  Epilogue epilogue = Epilogue::none;
  Out* before = nullptr;  ///< [m, n], rows before_stride apart: gelu writes it, gelu_gradient reads it
  std::int64_t before_stride = 0;
  Accumulate<In>* bias_gradient = nullptr;  ///< [m]
  std::int64_t batch = 1;                   ///< equal products, without bias and epilogue: those of several experts
  std::int64_t a_batch_stride = 0, b_batch_stride = 0, c_batch_stride = 0;  ///< elements from one to the next
  void* workspace = nullptr;  ///< matmul_workspace_bytes() of the same arguments, 64-byte aligned
};

/// The workspace in bytes. Does not read the pointers in `args`, so that device `count` can call it without memory.
template <class In, class Out>
std::int64_t matmul_workspace_bytes(Cpu, const Matmul<In, Out>& args);
template <class In, class Out>
std::int64_t matmul_workspace_bytes(Cuda, const Matmul<In, Out>& args);

/// True if matmul() computes the epilogue of `args`. If not, matmul() throws, and the caller runs the product without
/// an epilogue and then a kernel. Does not read the pointers in `args`. With an epilogue, matmul() needs a, b, c and
/// before at multiples of 16 bytes.
template <class In, class Out>
bool matmul_fuses(Cpu, const Matmul<In, Out>& args);
template <class In, class Out>
bool matmul_fuses(Cuda, const Matmul<In, Out>& args);

template <class In, class Out>
void matmul(Cpu, const Matmul<In, Out>& args);
template <class In, class Out>
void matmul(Cuda, const Matmul<In, Out>& args);

namespace cpu {

/// oneDNN primitives by shape, for one stream of work; another thread may call matmul_workspace_bytes() meanwhile. Made
/// and destroyed by `choir::Device`.
class MatmulPlans {
 public:
  MatmulPlans();
  ~MatmulPlans();
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

/// True if oneDNN multiplies bf16 matrices with bf16 instructions on this processor. If not, matmul() on bf16 computes
/// the same values through f32 copies, slowly: for tests, and for runs that set train.emulate_bf16.
bool has_native_bf16();

/// True if this processor has tiles with bf16 products (Intel AMX) and AVX-512 with conversions to bf16, and the
/// operating system lets this process use them, and a product on them is right (kernels/tiles.h).
bool has_tiles();

/// True if this processor multiplies pairs of bf16 in vectors (AVX-512 bf16).
bool has_pairs();

/// True if CpuUnit::vectors is the fastest here: AMD's multiply pairs at twice the rate of f32, Intel's at half of that
/// rate or at the same, and there products in vectors have not been measured. The maker decides and not a measurement,
/// so that a run computes the same bits whenever it is started.
bool has_fast_vectors();

}  // namespace cpu

namespace cuda {

/// A cuBLASLt handle on the current device, and plans by shape. Made and destroyed by `choir::Device`. Throws Failure
/// (kernels/cuda/failure.h) if cuBLASLt cannot start.
class MatmulPlans {
 public:
  MatmulPlans();
  ~MatmulPlans();
  MatmulPlans(const MatmulPlans&) = delete;
  MatmulPlans& operator=(const MatmulPlans&) = delete;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace cuda
}  // namespace choir::kernels
