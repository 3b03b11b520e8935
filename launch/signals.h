// Signals: remembered, and acted on at the next step boundary.
//
// SIGUSR1 and SIGTERM ask to save and be requeued, SIGINT to save and end. A second one ends at once. If a file grows
// beyond its limit, the write fails as on a full disk; there is no signal.
#pragma once

#include "framework/train/run.h"

namespace choir {

/// Installs the handlers. The only mutable state of the program that is not passed: a handler has no argument.
void install_signal_handlers();
/// How the signals so far ask the run to end.
RunEnd requested_end();

}  // namespace choir
