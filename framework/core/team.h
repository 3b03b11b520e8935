// The OpenMP teams of a thread (kernels/cpu/team.h), settled or refused.
#pragma once

namespace choir {

/// From now on a parallel region of the calling thread gets the threads that it asks for, and `threads` if it does not
/// ask. A real region proves it; throws ConfigError, with the variable's name, if fewer than `threads` come.
void settle_team(int threads);

}  // namespace choir
