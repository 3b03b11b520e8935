// The ledger: one line for each operation, for each axis and verb, and for each shape of a product.
#include "framework/core/ledger.h"

#include <gtest/gtest.h>

namespace choir::tests {
namespace {

Ledger enabled_ledger() {
  Ledger ledger;
  ledger.enabled = true;
  return ledger;
}

constexpr Ledger::Product a_product{.m = 2,
                                    .n = 3,
                                    .k = 4,
                                    .transpose_a = false,
                                    .transpose_b = true,
                                    .accumulate = false,
                                    .bf16_in = false,
                                    .bf16_out = false};

TEST(Ledgers, AddUpAnOperationByItsName) {
  Ledger ledger = enabled_ledger();
  const std::string same_text = "norm";  // at another address than the literal
  ledger.add("norm", {.flops = 10, .bytes = 100}, 0.5);
  ledger.add("attention", {.flops = 1, .bytes = 2}, 0);
  ledger.add(same_text.c_str(), {.flops = 3, .bytes = 30}, 0.25);
  ASSERT_EQ(ledger.operations().size(), 2u);
  const Ledger::Operation &norm = ledger.operations()[0], &attention = ledger.operations()[1];
  EXPECT_EQ(norm.name, "norm") << "in the order of the first call";
  EXPECT_EQ(norm.cost.flops, 13);
  EXPECT_EQ(norm.cost.bytes, 130);
  EXPECT_EQ(norm.calls, 2);
  EXPECT_EQ(norm.seconds, 0.75);
  EXPECT_EQ(attention.calls, 1);
  EXPECT_EQ(attention.seconds, 0);
}

TEST(Ledgers, TotalTheFlopsOfAllOperations) {
  Ledger ledger = enabled_ledger();
  EXPECT_EQ(ledger.total_flops(), 0);
  ledger.add("norm", {.flops = 10, .bytes = 100}, 0);
  ledger.add("attention", {.flops = 1}, 0);
  ledger.add("norm", {.flops = 10, .bytes = 100}, 0);
  EXPECT_EQ(ledger.total_flops(), 21);
}

TEST(Ledgers, CountMessagesByAxisAndVerb) {
  Ledger ledger = enabled_ledger();
  ledger.add_message("tensor", "all_reduce", 8);
  ledger.add_message("data", "all_reduce", 100);
  ledger.add_message("tensor", "all_gather", 16);
  ledger.add_message("tensor", "all_reduce", 24);
  ASSERT_EQ(ledger.traffic().size(), 3u);
  const Ledger::Traffic& first = ledger.traffic()[0];
  EXPECT_EQ(first.axis, "tensor");
  EXPECT_EQ(first.verb, "all_reduce");
  EXPECT_EQ(first.messages, 2);
  EXPECT_EQ(first.bytes, 32);
  EXPECT_EQ(ledger.traffic()[1].axis, "data");
  EXPECT_EQ(ledger.traffic()[2].verb, "all_gather");
}

TEST(Ledgers, CountProductsOfTheSameShape) {
  Ledger ledger = enabled_ledger();
  ledger.add_product(a_product);
  ledger.add_product(a_product);
  ASSERT_EQ(ledger.products().size(), 1u);
  EXPECT_EQ(ledger.products()[0].calls, 2);
}

TEST(Ledgers, TellProductsApartByEveryField) {
  using Change = void (*)(Ledger::Product&);
  const Change changes[] = {[](Ledger::Product& p) { ++p.m; },
                            [](Ledger::Product& p) { ++p.n; },
                            [](Ledger::Product& p) { ++p.k; },
                            [](Ledger::Product& p) { p.transpose_a = true; },
                            [](Ledger::Product& p) { p.transpose_b = false; },
                            [](Ledger::Product& p) { p.accumulate = true; },
                            [](Ledger::Product& p) { p.bf16_in = true; },
                            [](Ledger::Product& p) { p.bf16_out = true; }};
  Ledger ledger = enabled_ledger();
  ledger.add_product(a_product);
  std::size_t shapes = 1;
  for (const Change& change : changes) {
    Ledger::Product other = a_product;
    change(other);
    ledger.add_product(other);
    ASSERT_EQ(ledger.products().size(), ++shapes) << "change " << shapes - 2;
  }
}

TEST(Ledgers, WriteNothingUnlessEnabled) {
  Ledger ledger;
  ledger.add("norm", {.flops = 10, .bytes = 100}, 0.5);
  ledger.add_message("tensor", "all_reduce", 8);
  ledger.add_product(a_product);
  EXPECT_TRUE(ledger.operations().empty());
  EXPECT_TRUE(ledger.traffic().empty());
  EXPECT_TRUE(ledger.products().empty());
}

TEST(Ledgers, TakeATimeWhenTheOperationIsOver) {
  Ledger ledger = enabled_ledger();
  double seconds = 0;
  ledger.add_later("norm", {.flops = 10, .bytes = 100}, [&] { return seconds; });
  EXPECT_TRUE(ledger.operations().empty());
  seconds = 0.5;
  ledger.settle();
  ledger.settle();
  ASSERT_EQ(ledger.operations().size(), 1u);
  EXPECT_EQ(ledger.operations()[0].calls, 1);
  EXPECT_EQ(ledger.operations()[0].seconds, 0.5);
}

TEST(Ledgers, AreEmptyAfterClear) {
  Ledger ledger = enabled_ledger();
  ledger.add("norm", {.flops = 10, .bytes = 100}, 0.5);
  ledger.add_message("tensor", "all_reduce", 8);
  ledger.add_product(a_product);
  ledger.clear();
  EXPECT_TRUE(ledger.operations().empty());
  EXPECT_TRUE(ledger.traffic().empty());
  EXPECT_TRUE(ledger.products().empty());
  EXPECT_EQ(ledger.total_flops(), 0);
  ledger.add("norm", {.flops = 1}, 0);
  ASSERT_EQ(ledger.operations().size(), 1u) << "still enabled";
  EXPECT_EQ(ledger.operations()[0].calls, 1);
}

}  // namespace
}  // namespace choir::tests
