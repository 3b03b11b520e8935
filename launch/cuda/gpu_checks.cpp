// The part of `choir doctor` that needs CUDA's libraries.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

#include <cmath>

#include "framework/core/device.h"
#include "framework/ops/elementwise.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/failure.h"
#include "launch/doctor.h"

namespace choir {
namespace {

using State = Check::State;

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

Check driver_check() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0)
    return {.state = State::limited,
            .name = "CUDA driver",
            .text = "not installed",
            .fix = "to use a GPU, install NVIDIA's driver; nvidia-smi shows whether it works"};
  // A driver runs programs of its own major version, older and newer ones (CUDA's "minor version compatibility").
  const bool old = driver / 1000 < runtime / 1000;
  return {.state = old ? State::limited : State::good,
          .name = "CUDA driver",
          .text = fmt::format("for CUDA {}; choir uses the run-time {}", version_text(driver), version_text(runtime)),
          .fix = old ? "install a newer driver, or build choir with an older toolkit" : ""};
}

/// x [64, 64] of ones times itself: 64 everywhere. Through memory, copies, streams, a kernel and cuBLASLt.
std::string try_product(int index) {
  constexpr std::int64_t n = 64;
  Device device(GpuOptions{.index = index}, 1);
  const auto tensor = [&] { return Tensor(device.allocator(), {n, n}, DType::f32, MemoryKind::temporary); };
  const Tensor x = tensor(), y = tensor();
  const std::vector<float> ones(n * n, 1.0f);
  device.upload(ones.data(), x.raw(), x.bytes());
  kernels::Matmul<float, float> product{.a = x.data<float>(),
                                        .b = x.data<float>(),
                                        .c = y.data<float>(),
                                        .m = n,
                                        .n = n,
                                        .k = n,
                                        .a_stride = n,
                                        .b_stride = n,
                                        .c_stride = n};
  const Tensor workspace(device.allocator(), {kernels::matmul_workspace_bytes(device.cuda(), product)}, DType::u8,
                         MemoryKind::workspace);
  product.workspace = workspace.raw();
  kernels::matmul(device.cuda(), product);
  std::vector<float> result(n * n);
  device.download(y.raw(), result.data(), y.bytes());
  for (const float value : result)
    if (value != static_cast<float>(n)) return fmt::format("a product gave {} instead of {}", value, n);
  return "";
}

Check gpu_check(int index, int count) {
  Check check{.name = fmt::format("GPU {}", index)};
  try {
    const GpuFacts facts = cuda::gpu_facts(index);
    std::string peers;
    for (int peer = 0; peer < count; ++peer) {
      int reaches = 0;
      if (peer != index && cudaDeviceCanAccessPeer(&reaches, index, peer) == cudaSuccess && reaches != 0)
        peers += fmt::format("{}{}", peers.empty() ? "" : ", ", peer);
    }
    check.text = fmt::format("{}, {:.1f} GB, sm_{}, {} multiprocessors, reaches the memory of: {}", facts.name,
                             static_cast<double>(facts.memory_bytes) / 1e9, facts.compute_capability,
                             facts.multiprocessors, peers.empty() ? "no other" : peers);
    if (facts.compute_capability < 80) {
      check.state = State::limited;
      check.fix = "Choir's GPU code needs sm_80 (A100) or newer: set train.device=cpu";
      return check;
    }
    const std::string problem = try_product(index);
    check.text += problem.empty() ? "; multiplied two matrices" : "; " + problem;
    if (!problem.empty()) check.state = State::broken;
  } catch (const std::exception& error) {
    check.state = State::broken;
    check.text += std::string(check.text.empty() ? "" : "; ") + error.what();
    check.fix = "nvidia-smi shows whether the GPU is free and works; to run without it: train.device=cpu";
  }
  return check;
}

Check nccl_check(int gpus) {
  int version = 0;
  if (const ncclResult_t result = ncclGetVersion(&version); result != ncclSuccess)
    return {.state = State::limited,
            .name = "NCCL",
            .text = fmt::format("{}: {}", ncclGetErrorString(result), ncclGetLastError(nullptr)),
            .fix = "a run on several GPUs needs NCCL: install its library (Debian, Ubuntu: libnccl2)"};
  return {.name = "NCCL",
          .text = fmt::format(
              "{}.{}.{}{}", version / 10000, version % 10000 / 100, version % 100,
              gpus > 1 ? "; to try it between these GPUs: mpirun -n 2 choir bench collectives --device cuda" : "")};
}

/// Lets cuDNN plan an attention on GPU 0: forward, bf16, 128 tokens, 2 heads of 64. Returns why it cannot, or "".
std::string try_plan(std::string& engine) {
  constexpr kernels::AttentionShape shape{.batch = 1,
                                          .q_length = 128,
                                          .kv_length = 128,
                                          .heads = 2,
                                          .kv_heads = 2,
                                          .head_width = 64,
                                          .q_stride = 384,
                                          .k_stride = 384,
                                          .v_stride = 384,
                                          .out_stride = 128,
                                          .band = kernels::causal_band(128, 128),
                                          .scale = 0.125};
  try {
    kernels::cuda::check(cudaSetDevice(0), "cudaSetDevice(0)");
    kernels::cuda::CudnnAttention attention({});
    const kernels::cuda::CudnnAttentionPlan& plan = attention.plan(kernels::cuda::AttentionPass::forward, shape);
    engine = plan.engine;
    return plan.refusal;
  } catch (const std::exception& error) {
    return error.what();
  }
}

Check cudnn_check(int gpus) {
  const std::string otherwise = "attention on GPUs runs on Choir's own flash kernels; to use cuDNN's, ";
  const kernels::cuda::CudnnLibrary library = kernels::cuda::cudnn_library();
  if (library.version.empty())
    return {.state = State::limited,
            .name = "cuDNN",
            .text = library.problem,
            .fix = otherwise + (library.in_build ? "install its library"
                                                 : "install it, run launch/setup_cudnn_frontend, build again")};
  if (gpus == 0) return {.name = "cuDNN", .text = library.version + "; its plans of attention need a GPU"};
  std::string engine;
  if (const std::string refusal = try_plan(engine); !refusal.empty())
    return {.state = State::limited,
            .name = "cuDNN",
            .text = fmt::format("{}; cannot plan attention on GPU 0: {}", library.version, refusal),
            .fix = otherwise + "try another version of it"};
  return {.name = "cuDNN", .text = fmt::format("{}; planned an attention on GPU 0 ({})", library.version, engine)};
}

}  // namespace

std::vector<Check> gpu_checks() {
  std::vector<Check> checks = {driver_check()};
  std::string reason;
  const int count = cuda::visible_gpus(reason);
  if (count == 0)
    checks.push_back({.state = State::limited,
                      .name = "GPUs",
                      .text = reason,
                      .fix = "train.device=auto trains on the CPU; CUDA_VISIBLE_DEVICES may hide a GPU"});
  for (int index = 0; index < count; ++index) checks.push_back(gpu_check(index, count));
  checks.push_back(nccl_check(count));
  checks.push_back(cudnn_check(count));
  return checks;
}

}  // namespace choir
