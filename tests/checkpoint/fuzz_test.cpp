// Random damage to a small checkpoint: it is rejected with a reason, or the tensors that are read are equal. Runs for
// CHOIR_FUZZ_SECONDS (2 by default). Prints its seed; CHOIR_FUZZ_SEED sets it, to repeat the same damage.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "framework/core/error.h"
#include "tests/checkpoint/shards.h"

namespace choir::tests {
namespace {

std::string mutated(std::string bytes, std::mt19937& random) {
  const auto somewhere = [&] { return bytes.empty() ? 0 : random() % bytes.size(); };
  static const std::string words[] = {"null",
                                      "-1",
                                      "9223372036854775807",
                                      "18446744073709551616",
                                      "1e999",
                                      "\"x\"",
                                      "[]",
                                      "{}",
                                      "[[[[",
                                      "0",
                                      "\"\\u0000\"",
                                      "\"\xff\"",
                                      "true",
                                      "4611686018427387904"};
  for (std::size_t n = 1 + random() % 2; n > 0; --n) {
    switch (random() % 6) {
      case 0:
        if (!bytes.empty()) bytes[somewhere()] ^= static_cast<char>(1 << random() % 8);
        break;
      case 1:
        bytes.resize(somewhere());
        break;
      case 2:
        bytes.insert(somewhere(), words[random() % std::size(words)]);
        break;
      case 3: {  // a number gets another value
        const std::size_t at = bytes.find_first_of("0123456789", somewhere());
        const std::size_t past = bytes.find_first_not_of("0123456789", at);
        if (past != std::string::npos) bytes.replace(at, past - at, words[random() % std::size(words)]);
        break;
      }
      case 4:
        bytes.erase(somewhere(), random() % 200);
        break;
      case 5:
        bytes.insert(somewhere(), bytes.substr(somewhere(), random() % 300));
        break;
    }
  }
  return bytes;
}

TEST(Fuzz, DamageIsRejectedWithAReasonOrHarmless) {
  const char* seconds = std::getenv("CHOIR_FUZZ_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds ? std::atof(seconds) : 2.0);
  const TemporaryFolder folder;
  const std::vector<NamedShape> tensors(shapes().begin(), shapes().begin() + 4);
  const char* given_seed = std::getenv("CHOIR_FUZZ_SEED");
  const unsigned seed =
      given_seed ? static_cast<unsigned>(std::strtoul(given_seed, nullptr, 10)) : std::random_device{}();
  std::fprintf(stderr, "CHOIR_FUZZ_SEED=%u\n", seed);  // before the test: a crash would lose it
  std::mt19937 random(seed);
  const std::string path = write_checkpoint(folder.path(), 2, Cut::columns_then_flat, 2, {{"a", "b"}}, tensors);
  int trials = 0, accepted = 0, resealed = 0;
  while (std::chrono::steady_clock::now() < end) {
    const char* names[] = {"manifest.json", "manifest.json", "rank-0.h5", "rank-1.h5", "checkpoint.h5"};
    const std::string file = path + "/" + names[random() % std::size(names)];
    const std::string before = bytes_of(file);
    std::string after = mutated(before, random);
    if (file.ends_with("manifest.json") && random() % 3 != 0) {  // a valid seal, to reach the checks after it
      after = seal(after.substr(0, after.rfind("\"end\"")));
      ++resealed;
    }
    set_bytes(file, after);
    ++trials;
    const std::vector<std::string> problems = verify_checkpoint(path);
    if (problems.empty()) {
      ++accepted;
      try {
        ASSERT_EQ(wrong_after_reading(path, 2, Cut::rows, 3, tensors), 0) << file;
      } catch (const ConfigError&) {  // resealed with another name or shape: not the model's
        ASSERT_TRUE(file.ends_with("manifest.json"));
      }
    }
    for (const std::string& problem : problems) ASSERT_FALSE(problem.empty());
    if (look_at(path).problem.empty()) {  // the reader trusts the manifest; whatever it reads, it must not crash
      try {
        wrong_after_reading(path, 2, Cut::flat, 2, tensors);
      } catch (const std::exception& failure) {
        ASSERT_STRNE(failure.what(), "");
      }
    }
    set_bytes(file, before);
  }
  EXPECT_EQ(verify_checkpoint(path), std::vector<std::string>{});
  std::printf("%d trials, %d resealed, %d harmless\n", trials, resealed, accepted);
}

}  // namespace
}  // namespace choir::tests
