// The terminal that shows what this process prints.
#pragma once

#include <functional>

namespace choir {

/// Returns a function that returns the terminal's number of columns at the time of its call, 80 if it is not known; an
/// empty function if stdout is not shown on a terminal that can redraw a line (TERM is not set, or dumb).
///
/// mpirun gives each rank a pseudo-terminal without a size, wherever the output goes. So under mpirun this uses the
/// output of the nearest ancestor outside that pseudo-terminal: mpirun's own.
std::function<int()> watched_columns();

}  // namespace choir
