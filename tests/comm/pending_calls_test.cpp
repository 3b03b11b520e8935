// Calls of a GPU end in the ring when the GPU has ended them, and not when they were enqueued.
#include "framework/comm/pending_calls.h"

#include <gtest/gtest.h>

#include <array>
#include <stdexcept>

namespace choir::tests {
namespace {

TEST(PendingCalls, EndInTheRingWhenTheyAreDone) {
  CallRing ring;
  PendingCalls pending(ring);
  std::array<bool, 3> done{};
  for (bool& flag : done) pending.add(ring.begin({.number = 1}), [&flag] { return flag; });
  const auto ended = [&] {
    std::string text;
    for (const Call& call : ring.calls()) text += call.ended != 0 ? 'x' : '.';
    return text;
  };
  pending.note_ends();
  EXPECT_EQ(ended(), "...");
  EXPECT_TRUE(ring.in_call());
  done[1] = true;  // a stream ends them in order: the second is not asked before the first is done
  pending.note_ends();
  EXPECT_EQ(ended(), "...");
  done[0] = true;
  pending.note_ends();
  EXPECT_EQ(ended(), "xx.");
  EXPECT_TRUE(ring.in_call());
  done[2] = true;
  pending.note_ends();
  EXPECT_EQ(ended(), "xxx");
  EXPECT_FALSE(ring.in_call());
}

// The host may be a whole ring ahead: the end of a call whose slot another has taken is not written to that other.
TEST(PendingCalls, MayBeMoreThanTheRingHolds) {
  CallRing ring;
  PendingCalls pending(ring);
  int done = 0;
  for (int i = 0; i < CallRing::length + 2; ++i)
    pending.add(ring.begin({.number = static_cast<std::uint64_t>(i + 1)}), [&done, i] { return i < done; });
  done = 2;
  pending.note_ends();
  for (const Call& call : ring.calls()) EXPECT_EQ(call.ended, 0) << call.sequence;
  EXPECT_TRUE(ring.in_call());
  done = CallRing::length + 2;
  pending.note_ends();
  for (const Call& call : ring.calls()) EXPECT_NE(call.ended, 0) << call.sequence;
  EXPECT_FALSE(ring.in_call());
}

TEST(PendingCalls, AFailureOfTheGpuComesOut) {
  CallRing ring;
  PendingCalls pending(ring);
  pending.add(ring.begin({.number = 1}), []() -> bool { throw std::runtime_error("the GPU is lost"); });
  EXPECT_THROW(pending.note_ends(), std::runtime_error);
  EXPECT_TRUE(ring.in_call());
}

}  // namespace
}  // namespace choir::tests
