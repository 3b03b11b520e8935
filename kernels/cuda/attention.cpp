// Attention on CUDA: chooses the implementation for a shape, cuDNN's graphs or Choir's flash kernels.
//
// Forward and backward are chosen separately: both implementations save and read the same natural log-sum-exp. A device
// without plans (`count`, which has no GPU for cuDNN to plan for) reports what the flash kernels need.
#include "kernels/attention.h"

#include <set>
#include <type_traits>
#include <utility>

#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/flash_attention.h"

namespace choir::kernels {
namespace cuda {

struct AttentionPlans::State {
  AttentionImplementation implementation;
  std::function<void(const std::string&)> say;
  CudnnAttention cudnn;
  std::set<std::string> said{};  // the reasons already reported
};

AttentionPlans::AttentionPlans(AttentionImplementation implementation, bool deterministic,
                               std::function<void(const std::string&)> say)
    : state_(new State{implementation, std::move(say), CudnnAttention({.deterministic = deterministic})}) {}

AttentionPlans::~AttentionPlans() = default;

// Why cuDNN does not run this pass; empty if it does.
template <class T>
static std::string refusal(AttentionPlans::State& plans, AttentionPass pass, const AttentionShape& shape) {
  if constexpr (std::is_same_v<T, bf16>) {
    // A cache of keys grows by one token per step, and cuDNN needs a second to make a plan.
    const bool continues = shape.q_length < shape.kv_length && shape.band.last == shape.kv_length - shape.q_length;
    if (plans.implementation == AttentionImplementation::automatic && continues)
      return "the queries continue a cache, and cuDNN would need a new plan for each of its lengths";
    return plans.cudnn.plan(pass, shape).refusal;
  } else {
    return "cuDNN attention supports bf16 only";
  }
}

template <class T>
static bool cudnn_runs(Cuda device, AttentionPass pass, const AttentionShape& shape) {
  if (!device.attention_plans) return false;
  AttentionPlans::State& plans = device.attention_plans->state();
  if (plans.implementation == AttentionImplementation::flash) return false;
  const std::string reason = refusal<T>(plans, pass, shape);
  if (reason.empty()) return true;
  const std::string what = pass == AttentionPass::forward ? "attention forward" : "attention backward";
  if (plans.implementation == AttentionImplementation::cudnn) throw Failure("cuDNN " + what, reason);
  if (plans.said.insert(what + reason).second && plans.say)
    plans.say(what + " runs on Choir's flash kernel, not on cuDNN: " + reason);
  return false;
}

}  // namespace cuda

using cuda::AttentionPass;

template <class T>
std::int64_t attention_forward_workspace_bytes(Cuda device, const AttentionShape& shape) {
  if (cuda::cudnn_runs<T>(device, AttentionPass::forward, shape))
    return device.attention_plans->state().cudnn.plan(AttentionPass::forward, shape).workspace_bytes;
  return cuda::flash_forward_workspace_bytes<T>(shape);
}

template <class T>
std::int64_t attention_backward_workspace_bytes(Cuda device, const AttentionShape& shape) {
  if (cuda::cudnn_runs<T>(device, AttentionPass::backward, shape))
    return device.attention_plans->state().cudnn.plan(AttentionPass::backward, shape).workspace_bytes;
  return cuda::flash_backward_workspace_bytes<T>(shape);
}

template <class T>
void attention_forward(Cuda device, const AttentionForward<T>& arguments) {
  const bool by_cudnn = cuda::cudnn_runs<T>(device, AttentionPass::forward, arguments.shape);
  if constexpr (std::is_same_v<T, bf16>) {
    if (by_cudnn) return device.attention_plans->state().cudnn.forward(device.stream, arguments);
  }
  cuda::flash_forward<T>(device, arguments);
}

template <class T>
void attention_backward(Cuda device, const AttentionBackward<T>& arguments) {
  const bool by_cudnn = cuda::cudnn_runs<T>(device, AttentionPass::backward, arguments.shape);
  if constexpr (std::is_same_v<T, bf16>) {
    if (by_cudnn) return device.attention_plans->state().cudnn.backward(device.stream, arguments);
  }
  cuda::flash_backward<T>(device, arguments);
}

template std::int64_t attention_forward_workspace_bytes<float>(Cuda, const AttentionShape&);
template std::int64_t attention_forward_workspace_bytes<bf16>(Cuda, const AttentionShape&);
template std::int64_t attention_backward_workspace_bytes<float>(Cuda, const AttentionShape&);
template std::int64_t attention_backward_workspace_bytes<bf16>(Cuda, const AttentionShape&);
template void attention_forward<float>(Cuda, const AttentionForward<float>&);
template void attention_forward<bf16>(Cuda, const AttentionForward<bf16>&);
template void attention_backward<float>(Cuda, const AttentionBackward<float>&);
template void attention_backward<bf16>(Cuda, const AttentionBackward<bf16>&);

}  // namespace choir::kernels
