// Jobs of launch/train that are held, killed or sent signals while they run.
#pragma once

#include <functional>

#include "tests/launch/runs.h"

namespace choir::tests {

bool says(const std::string& text, const std::string& words);

/// Waits until `condition` is true; false after two minutes.
bool wait_until(const std::function<bool()>& condition);

/// The environment for tests/launch/faults: calls of `call` on files whose path contains `part` wait as long as the
/// file `hold` exists. Then `hold`.held exists too.
std::string held(const std::string& call, const std::string& part, const std::string& hold);

void create(const std::string& path);

/// The shell command of launch/train for two tensor ranks, with the program that was built with the tests.
std::string launch_train(const Workshop& shop, const std::string& arguments, const std::string& program = CHOIR_BINARY);

/// A program in place of choir, whose verb train runs `script` first.
std::string wrapper(const Workshop& shop, const std::string& script);

/// The processes whose parent is `parent`, with `name` as their program.
std::vector<pid_t> children(pid_t parent, const std::string& name);

/// The mpirun that launch/train in process `launcher` has started, and its ranks. Open MPI 5's becomes prterun.
std::vector<pid_t> job_of(pid_t launcher);

/// Kills a rank of the job that trains into `folder`, on any host of a test.
void kill_rank(const std::string& folder, int rank);

}  // namespace choir::tests
