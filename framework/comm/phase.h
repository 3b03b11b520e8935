// What a rank does at the moment: for reports, and for the time that it may take.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace choir {

enum class Phase : std::uint8_t {
  start,     ///< from the start of the process until the run has found what it starts from
  load,      ///< of weights, until the first step
  step,      ///< of training
  evaluate,  ///< on held-out text
  record,    ///< of results: metrics and logs
  save,      ///< of a checkpoint, on the thread that trains
  end,       ///< after the last step and save, with MPI_Finalize
};

/// "computing step 7". `step` is ignored if the phase is not of a step.
inline std::string describe(Phase phase, std::int64_t step) {
  switch (phase) {
    case Phase::start:
      return "starting the run";
    case Phase::load:
      return "loading";
    case Phase::step:
      return fmt::format("computing step {}", step);
    case Phase::evaluate:
      return fmt::format("evaluating after step {}", step);
    case Phase::record:
      return fmt::format("recording step {}", step);
    case Phase::save:
      return fmt::format("saving step {}", step);
    case Phase::end:
      return "ending the run";
  }
  return "in an unknown phase";
}

}  // namespace choir
