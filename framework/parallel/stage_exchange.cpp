#include "framework/parallel/stage_exchange.h"

#include <fmt/format.h>

#include <string>

#include "framework/core/error.h"

namespace choir {

/// The same number at both ends, and another for each message of a step.
int StageExchange::tag(const Transfer& t) const {
  return (t.micro_batch * pipeline_.pieces() + t.piece) * 2 + (t.kind == Action::Kind::forward ? 0 : 1);
}

static const char* name_of(Action::Kind kind) { return kind == Action::Kind::forward ? "forward" : "backward"; }

/// "forward 3 of piece 1": the same at both ends.
static std::string name_of(const Transfer& t) {
  return fmt::format("{} {} of piece {}", name_of(t.kind), t.micro_batch, t.piece);
}

/// "forward 3 to stage 1, backward 2 from stage 1"
static std::string describe(const StageStep& step) {
  std::string text;
  const auto add = [&](const std::vector<Transfer>& transfers, const char* direction) {
    for (const Transfer& t : transfers)
      text += fmt::format("{}{} {} {} stage {}", text.empty() ? "" : ", ", name_of(t.kind), t.micro_batch, direction,
                          t.peer);
  };
  add(step.sends, "to");
  add(step.receives, "from");
  return text;
}

void StageExchange::exchange(const StageStep& step, const std::function<Shape(int)>& shape, Context& context) {
  if (step.sends.empty() && step.receives.empty()) return;
  Runtime& runtime = context.runtime;
  Communicator& axis = *context.mesh.pipeline;
  Stream& communicate = axis.stream();
  std::vector<Message> sends, receives;
  for (const Transfer& t : step.sends) {
    const auto sent = tensors_.extract(Key{t.kind, t.micro_batch, t.piece});
    sends.push_back({.tensor = sent.mapped().tensor, .peer = t.peer, .tag = tag(t), .name = name_of(t)});
  }
  for (const Transfer& t : step.receives)
    receives.push_back({.tensor = runtime.empty(shape(t.micro_batch), runtime.compute_type),
                        .peer = t.peer,
                        .tag = tag(t),
                        .name = name_of(t)});
  Event ready, arrived;
  ready.record(runtime.device.compute());
  ready.wait(communicate);
  axis.exchange(sends, receives, communicate, describe(step).c_str());
  arrived.record(communicate);
  for (std::size_t i = 0; i < receives.size(); ++i) {
    const Transfer& t = step.receives[i];
    tensors_[{t.kind, t.micro_batch, t.piece}] = {receives[i].tensor, arrived, axis.last_call()};
  }
}

void StageExchange::put(Action::Kind kind, int micro_batch, int piece, const Tensor& tensor) {
  if (tensor) tensors_[{kind, micro_batch, piece}] = {.tensor = tensor, .arrived = {}};
}

Tensor StageExchange::take(Action::Kind kind, int micro_batch, int piece, Context& context) {
  const int from = kind == Action::Kind::forward ? piece - 1 : piece + 1;
  if (from < 0 || from == pipeline_.pieces()) return {};
  const auto found = tensors_.extract(Key{kind, micro_batch, from});
  if (found.empty())
    throw Error({.what = "a pipeline stage has not got the input of its next action",
                 .why = "its schedule has no message for it: this is a mistake in the program"});
  const Arrival& arrival = found.mapped();
  arrival.arrived.wait(context.runtime.device.compute());
  context.mesh.pipeline->waited_for(arrival.call);
  return arrival.tensor;
}

}  // namespace choir
