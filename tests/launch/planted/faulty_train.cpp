// `choir` with a fault of the machine in its training steps: faulty_train FAULT VERB ...
//
//   passing:STEP:PARAMETER:ROW:VALUE    during step STEP the first element of a row of a weight has another value
//   lasting:STEP:PARAMETER:ROW:VALUE    from step STEP on
//
// Run::train() calls Trainer::step() through the linker's --wrap, so nothing in the program knows of it.
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "framework/ops/elementwise.h"
#include "framework/train/trainer.h"
#include "launch/command_line.h"

namespace choir {
namespace {

std::vector<std::string> fault;  // the words of FAULT

std::int64_t number(std::size_t word) { return std::atoll(fault.at(word).c_str()); }

/// Exchanges the element and `value` on the rank that updates it; the others get it from there.
void exchange(Trainer& trainer, const std::string& name, std::int64_t row, float& value) {
  const Parameter* p = trainer.parameters().find(name);
  if (p && p->held.row_begin <= row && row < p->held.row_end) {
    const std::int64_t flat = p->offset() + (row - p->held.row_begin) * p->held.columns();
    for (const Bucket& bucket : trainer.shards().buckets()) {
      if (flat < bucket.updated.begin || flat >= bucket.updated.end) continue;
      const Tensor element = trainer.shards().at({flat, flat + 1}, &Bucket::master);
      float before = 0;
      ops::download(trainer.runtime(), element, &before);
      ops::upload(trainer.runtime(), &value, element);
      value = before;
    }
  }
  trainer.shards().round(trainer.runtime());
  Context all = trainer.context();
  trainer.shards().publish(all);
}

}  // namespace

StepResult real_step(Trainer*, std::int64_t, const ReadSample&) asm("__real_" CHOIR_TRAINER_STEP);
StepResult wrapped_step(Trainer*, std::int64_t, const ReadSample&) asm("__wrap_" CHOIR_TRAINER_STEP);

StepResult wrapped_step(Trainer* trainer, std::int64_t step, const ReadSample& read) {
  static bool happened = false;  // a step may be computed twice
  const std::string& kind = fault.at(0);
  if (happened || step != number(1)) return real_step(trainer, step, read);
  happened = true;
  float value = std::strtof(fault.at(4).c_str(), nullptr);
  exchange(*trainer, fault.at(2), number(3), value);
  const StepResult result = real_step(trainer, step, read);
  if (kind == "passing") exchange(*trainer, fault.at(2), number(3), value);
  return result;
}

}  // namespace choir

int main(int argc, char** argv) {
  std::istringstream words(argv[1]);
  for (std::string word; std::getline(words, word, ':');) choir::fault.push_back(word);
  argv[1] = argv[0];
  return choir::run_command_line(argc - 1, argv + 1);
}
