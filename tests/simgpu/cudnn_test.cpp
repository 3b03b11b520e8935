// Which implementation of attention is chosen, and what is said about it, if cuDNN refuses every graph.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/flash_attention.h"
#include "launch/doctor.h"

namespace choir {
namespace {

using kernels::AttentionShape;
using kernels::bf16;
using kernels::Cuda;
using kernels::cuda::AttentionImplementation;
using kernels::cuda::AttentionPlans;

constexpr AttentionShape shape{.batch = 1,
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

struct Chosen {
  std::vector<std::string> said;
  AttentionPlans plans;
  Cuda device{.attention_plans = &plans};

  explicit Chosen(AttentionImplementation implementation)
      : plans(implementation, true, [this](const std::string& line) { said.push_back(line); }) {}
};

TEST(AttentionChoice, AutomaticUsesFlashAndSaysWhyOnceForEachPass) {
  Chosen chosen(AttentionImplementation::automatic);
  AttentionShape other = shape;
  other.batch = 3;
  for (const AttentionShape& s : {shape, shape, other}) {
    EXPECT_EQ(attention_forward_workspace_bytes<bf16>(chosen.device, s),
              kernels::cuda::flash_forward_workspace_bytes<bf16>(s));
    EXPECT_EQ(attention_backward_workspace_bytes<bf16>(chosen.device, s),
              kernels::cuda::flash_backward_workspace_bytes<bf16>(s));
  }
  ASSERT_EQ(chosen.said.size(), 2u);
  EXPECT_NE(chosen.said[0].find("attention forward runs on Choir's flash kernel"), std::string::npos);
  EXPECT_NE(chosen.said[1].find("attention backward runs on Choir's flash kernel"), std::string::npos);
  EXPECT_NE(chosen.said[0].find("cuDNN"), std::string::npos);
}

TEST(AttentionChoice, CudnnAloneIsAFailureWithTheReason) {
  Chosen chosen(AttentionImplementation::cudnn);
  EXPECT_THROW(attention_forward_workspace_bytes<bf16>(chosen.device, shape), kernels::cuda::Failure);
  try {
    attention_backward_workspace_bytes<float>(chosen.device, shape);
    FAIL() << "nothing was thrown";
  } catch (const kernels::cuda::Failure& failure) {
    EXPECT_NE(std::string(failure.what()).find("bf16 only"), std::string::npos) << failure.what();
  }
}

TEST(AttentionChoice, FlashAsksNobody) {
  Chosen chosen(AttentionImplementation::flash);
  EXPECT_EQ(attention_forward_workspace_bytes<bf16>(chosen.device, shape),
            kernels::cuda::flash_forward_workspace_bytes<bf16>(shape));
  EXPECT_TRUE(chosen.said.empty());
}

TEST(AttentionChoice, ADeviceWithoutPlansReportsWhatFlashNeeds) {
  EXPECT_EQ(attention_backward_workspace_bytes<bf16>(Cuda{}, shape),
            kernels::cuda::flash_backward_workspace_bytes<bf16>(shape));
}

TEST(AttentionChoice, TheDoctorSaysThatFlashRunsAndWhy) {
  const Check check = gpu_checks().back();
  EXPECT_EQ(check.name, "cuDNN");
  EXPECT_EQ(check.state, Check::State::limited);
  EXPECT_NE(check.text.find("cuDNN"), std::string::npos) << check.text;
  EXPECT_NE(check.fix.find("flash kernels"), std::string::npos) << check.fix;
}

}  // namespace
}  // namespace choir
