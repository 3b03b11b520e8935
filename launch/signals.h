// Signals: remembered, and acted on at the next step boundary.
//
// SIGUSR1 and SIGTERM ask to save and be requeued, SIGINT to save and end. A second one ends at once. A file that grows
// beyond its limit is an error of the write, as a full disk is, and no signal.
#pragma once

#include "framework/train/run.h"

namespace choir {

/// Installs the handlers. The only mutable state of the program that is not passed: a handler has no argument.
void install_signal_handlers();
/// What the signals so far ask for.
RunEnd requested_end();

}  // namespace choir
