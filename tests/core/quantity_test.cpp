// Numbers with their nouns.
#include "framework/core/quantity.h"

#include <gtest/gtest.h>

namespace choir::tests {
namespace {

TEST(Quantity, IsSingularForOneOnly) {
  EXPECT_EQ(quantity(1, "document"), "1 document");
  EXPECT_EQ(quantity(0, "document"), "0 documents");
  EXPECT_EQ(quantity(1189, "document"), "1189 documents");
  EXPECT_EQ(quantity(1, "micro-batch"), "1 micro-batch");
  EXPECT_EQ(quantity(2, "micro-batch"), "2 micro-batches");
}

}  // namespace
}  // namespace choir::tests
