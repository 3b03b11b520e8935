// Which of cuBLASLt's algorithms computes a product. Its heuristics rank them by a model of the GPU, and Choir takes
// the first; another one can be chosen here, after a measurement (framework/train/timed_products.h).
//
// A product is named by a line of numbers: all that its plan depends on. An algorithm is named by the digits of
// cuBLASLt's opaque description, which the same version of the library understands again on the same kind of GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/matmul.h"

namespace choir::kernels::cuda {

/// In place of the algorithm of a product that gives the gradient of a bias too: it is computed apart, by a kernel
/// behind the product of without_bias_gradient().
inline constexpr char bias_gradient_apart[] = "apart";

/// "cuBLASLt 130002".
std::string matmul_library();

/// The products for which there are plans so far, sorted, without those of 8 bits, which keep the first algorithm.
/// Alignments count up to 16 bytes, the widest access.
std::vector<std::string> planned_products(MatmulPlans&);

/// The same product without its epilogue, if this is the gradient of a bias; else "".
std::string without_bias_gradient(const std::string& product);

/// The first eight algorithms that the heuristics propose, best first, of those that give the same bits in every run.
/// Splits of the dim summed over do: their parts are summed in a fixed order. But they are taken only if the parts are
/// kept in f32 (CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE): other schemes round each part to the type of the result.
std::vector<std::string> first_algorithms(MatmulPlans&, const std::string& product);

/// Memory for all operands of the product, and workspace.
std::int64_t scratch_bytes(const std::string& product);
/// Enqueues the product each time it is called, on operands in `scratch`, at a multiple of 256 bytes, which is to hold
/// numbers and outlives it. Throws Failure if cuBLASLt refuses the algorithm.
std::function<void()> product_on_scratch(Cuda, const std::string& product, const std::string& algorithm, void* scratch);
/// The same for the kernel that computes the gradient of a bias apart.
std::function<void()> bias_gradient_on_scratch(Cuda, const std::string& product, void* scratch);

/// From now on the product is computed so. Throws Failure if cuBLASLt refuses the algorithm.
void choose_algorithm(MatmulPlans&, const std::string& product, const std::string& algorithm);

}  // namespace choir::kernels::cuda
