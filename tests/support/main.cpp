// main() of the single-process tests.
#include <gtest/gtest.h>

#include "tests/support/watchdog.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  choir::tests::start_watchdog(90, 0);
  return RUN_ALL_TESTS();
}
