// Several hosts on one machine: network namespaces that a switch connects, each with a host name of its own.
#pragma once

#include <string>
#include <vector>

#include "tests/launch/runs.h"

namespace choir::tests {

/// Hosts host0, host1, ... with addresses 10.77.0.1, .2, ... They and their processes end with the object. They share
/// the file system.
class NamespaceHosts {
 public:
  /// One host for each number of slots. The files that mpirun needs are made in the folder of `shop`.
  NamespaceHosts(const Workshop& shop, const std::vector<int>& slots);
  ~NamespaceHosts();
  NamespaceHosts(const NamespaceHosts&) = delete;
  NamespaceHosts& operator=(const NamespaceHosts&) = delete;

  /// Why this system cannot make them; "" if it can.
  const std::string& problem() const { return problem_; }
  /// The hostfile.
  const std::string& file() const { return file_; }
  /// Before a command: settings of mpirun, which uses the network of these hosts only.
  std::string environment() const;
  /// Before a command: on that host.
  std::string on(int host) const;
  /// Takes the cable of a host out of the switch, and puts it back.
  void cut(int host) const;
  void mend(int host) const;
  /// Limits what a host sends and receives to 8 Mbit/s. Returns why this system cannot, or "".
  std::string slow_down(int host) const;

 private:
  std::string name(int host) const { return prefix_ + "h" + std::to_string(host); }

  std::string prefix_, agent_, file_, problem_;
  int hosts_ = 0;
};

}  // namespace choir::tests
