// Signals: remembered, and acted on at the end of the step.
//
// SIGUSR1 and SIGTERM ask to save and be requeued, SIGINT to save and end. Batch systems and launchers send them more
// than once, so repeated ones change nothing. Only a SIGINT that comes more than a second after the first one ends the
// process at once: a terminal sends it to its whole process group, and a launcher in that group forwards it.
#pragma once

#include "framework/train/run.h"

namespace choir {

/// Installs the handlers. To be called before MPI_Init, so that no signal is lost while MPI starts. What they write is
/// the only mutable state of the program that is not passed: a handler has no argument.
void catch_stop_signals();
/// What the signals so far ask for.
StopRequest stop_request();

/// From this call on, a write that would make a file larger than its limit (ulimit -f) fails as on a full disk, with
/// EFBIG; without it, the signal SIGXFSZ ends the process.
void ignore_file_size_signal();

}  // namespace choir
