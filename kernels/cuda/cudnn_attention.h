// Attention by cuDNN: its graphs of scaled dot-product attention, forward and backward, in bf16.
//
// Before Blackwell, cuDNN's deterministic backward keeps a score for every (query, key) pair: 2 bytes * batch * heads *
// q_length * kv_length. A pass whose workspace exceeds a limit is therefore divided into equal calls over slices of the
// batch, then of the key/value heads, which all use the same, small workspace. This header includes none of cuDNN's.
// NVIDIA, cuDNN documentation, "Graph API: fused attention"; Dao (2023), arXiv 2307.08691.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/cudnn_slices.h"
#include "kernels/types.h"

namespace choir::kernels::cuda {

/// The cuDNN that this program uses on this machine.
struct CudnnLibrary {
  bool in_build = false;  ///< this program was built to use it
  std::string version;    ///< "9.19.0"; empty: it cannot be used, and `problem` says why
  std::string problem;
};
CudnnLibrary cudnn_library();

enum class AttentionPass : std::uint8_t { forward, backward };

struct CudnnAttentionOptions {
  bool deterministic = true;                                         ///< backward gives the same bits in every run
  std::int64_t workspace_limit_bytes = cudnn_workspace_limit_bytes;  ///< of one call; beyond it, slices

  /// The description of a GPU in cuDNN's JSON: plans are made for that GPU, which need not be present, and cannot run.
  /// Empty: the current GPU.
  std::string described_gpu{};
};

/// How cuDNN runs one pass over one shape.
struct CudnnAttentionPlan {
  std::string refusal;               ///< why it does not, with cuDNN's message if it refused; empty if it does
  std::string engine;                ///< of the first call, as cuDNN names it
  int calls = 0;                     ///< slices of heads or of the batch, one after the other
  std::int64_t workspace_bytes = 0;  ///< of the largest call
};

/// cuDNN's handle and its compiled graphs, by shape. The log-sum-exp that forward saves is natural, as in
/// kernels/attention.h: passes of cuDNN and of Choir's flash kernels can be mixed.
class CudnnAttention {
 public:
  explicit CudnnAttention(CudnnAttentionOptions options);
  ~CudnnAttention();
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;

  /// The first call for a shape compiles its graphs, about a second for each; later calls look it up. A build without
  /// cuDNN refuses every shape.
  const CudnnAttentionPlan& plan(AttentionPass pass, const AttentionShape& shape);

  /// Enqueue one pass whose plan has no refusal. Pointers are 16-byte aligned. Throw Failure (kernels/cuda/failure.h).
  void forward(CUstream_st* stream, const AttentionForward<bf16>& arguments);
  void backward(CUstream_st* stream, const AttentionBackward<bf16>& arguments);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace choir::kernels::cuda
