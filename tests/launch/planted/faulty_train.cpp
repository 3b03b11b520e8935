// `choir` with a fault of the machine in its training steps: faulty_train FAULT VERB ...
//
//   passing:STEP:PARAMETER:ROW:VALUE    during step STEP the first element of a row of a weight has another value
//   lasting:STEP:PARAMETER:ROW:VALUE    from step STEP on
//   flip:STEP:RANK:ARRAY:ELEMENT:BIT    in step STEP, when the gradients are complete, a bit of an element that a rank
//                                       updates is flipped; of the master (-1) or of a state array of the optimizer
//   slow:RANK:MILLISECONDS              each step of a rank takes longer
//
// Run::train() calls Trainer::start_step() through the linker's --wrap, so nothing in the program knows of it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "framework/ops/elementwise.h"
#include "framework/train/trainer.h"
#include "launch/command_line.h"

namespace choir {
namespace {

std::vector<std::string> fault;  // the words of FAULT

std::int64_t number(std::size_t word) { return std::atoll(fault.at(word).c_str()); }

/// In the first bucket.
void flip_bit(Trainer& trainer) {
  if (trainer.mesh().world->rank() != number(2)) return;
  const Bucket& bucket = trainer.shards().buckets().front();
  const std::int64_t element = number(4);
  const Tensor values =
      number(3) < 0 ? bucket.master : trainer.optimizer().state()[static_cast<std::size_t>(number(3))].values;
  const Tensor one = values.slice_columns(element, element + 1);
  std::uint32_t bits = 0;
  ops::download(trainer.runtime(), one, &bits);
  bits ^= 1u << number(5);
  ops::upload(trainer.runtime(), &bits, one);
}

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

using Before = std::function<void()>;
using Step = StepInFlight(Trainer*, std::int64_t, const ReadSample&, const Before&, const ReadSample&);
Step real_step asm("__real_" CHOIR_TRAINER_STEP);
Step wrapped_step asm("__wrap_" CHOIR_TRAINER_STEP);

StepInFlight wrapped_step(Trainer* trainer, std::int64_t step, const ReadSample& read, const Before& before_update,
                          const ReadSample& read_next) {
  static bool happened = false;  // a step may be computed twice
  const std::string& kind = fault.at(0);
  if (kind == "slow") {
    if (trainer->mesh().world->rank() == number(1)) std::this_thread::sleep_for(std::chrono::milliseconds(number(2)));
    return real_step(trainer, step, read, before_update, read_next);
  }
  if (happened || step != number(1)) return real_step(trainer, step, read, before_update, read_next);
  happened = true;
  if (kind == "flip")
    return real_step(
        trainer, step, read,
        [&] {
          flip_bit(*trainer);
          before_update();
        },
        read_next);
  float value = std::strtof(fault.at(4).c_str(), nullptr);
  exchange(*trainer, fault.at(2), number(3), value);
  const StepInFlight result = real_step(trainer, step, read, before_update, read_next);
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
