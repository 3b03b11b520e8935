// Philox against the known answers that Random123 publishes (kat_vectors, philox4x32 with 10 rounds).
#include "kernels/philox.h"

#include <gtest/gtest.h>

namespace choir::kernels {
namespace {

TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  // counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: digits of pi, lowest word first
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, AWordIsThatOfItsBlock) {
  for (std::uint64_t i = 0; i < 9; ++i) EXPECT_EQ(philox_word(7, 3, i), philox(7, i / 4, 3)[i % 4]);
}

}  // namespace
}  // namespace choir::kernels
