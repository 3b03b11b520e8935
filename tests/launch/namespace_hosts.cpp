#include "tests/launch/namespace_hosts.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace choir::tests {

NamespaceHosts::NamespaceHosts(const Workshop& shop, const std::vector<int>& slots)
    : prefix_("choir" + std::to_string(getpid())), agent_(shop.path("agent")), file_(shop.path("hosts")) {
  std::ofstream hostfile(file_);
  for (const int n : slots) hostfile << "host" << hosts_++ << " slots=" << n << "\n";
  // Arguments: host, command.
  std::ofstream(agent_) << "#!/bin/sh\nh=$1\nshift\nexec ip netns exec " << prefix_
                        << "h${h#host} unshare -u sh -c 'hostname \"$0\"; exec sh -c \"$1\"' \"$h\" \"$*\"\n";
  chmod(agent_.c_str(), 0755);
  const std::string hub = prefix_ + "s";
  std::string make = "set -e; ip netns add " + hub + "; ip -n " + hub + " link add bridge type bridge; ip -n " + hub +
                     " link set bridge up; ";
  for (int i = 0; i < hosts_; ++i) {
    const std::string number = std::to_string(i), address = "10.77.0." + std::to_string(i + 1);
    const std::string host = "ip -n " + name(i), port = "ip -n " + hub;
    make += "ip netns add " + name(i) + "; ip link add eth0 netns " + name(i) + " type veth peer name port" + number +
            " netns " + hub + "; " + host + " addr add " + address + "/24 dev eth0; " + host + " link set lo up; " +
            host + " link set eth0 up; " + port + " link set port" + number + " master bridge up; ";
  }
  const Finished made = shell(make + on(0) + "true");
  problem_ = made.code == 0 ? "" : made.output;
}

NamespaceHosts::~NamespaceHosts() {
  for (int i = 0; i < hosts_; ++i)
    shell("ip netns pids " + name(i) + " | xargs -r kill -KILL; ip netns del " + name(i));
  shell("ip netns del " + prefix_ + "s");
}

std::string NamespaceHosts::environment() const {
  return "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 "
         "OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_tcp_if_include=10.77.0.0/24 "
         "OMPI_MCA_oob_tcp_if_include=10.77.0.0/24 OMPI_MCA_plm_rsh_agent=" +
         agent_ + "; ";
}

std::string NamespaceHosts::on(int host) const {
  return "ip netns exec " + name(host) + " unshare -u sh -c 'hostname host" + std::to_string(host) +
         "; exec \"$@\"' sh ";
}

void NamespaceHosts::cut(int host) const {
  shell("ip -n " + prefix_ + "s link set port" + std::to_string(host) + " down");
}

void NamespaceHosts::mend(int host) const {
  shell("ip -n " + prefix_ + "s link set port" + std::to_string(host) + " up");
}

std::string NamespaceHosts::slow_down(int host) const {
  const std::string limit = " root tbf rate 40mbit burst 32kb latency 400ms";
  const Finished limited = shell("tc -n " + name(host) + " qdisc replace dev eth0" + limit + " && tc -n " + prefix_ +
                                 "s qdisc replace dev port" + std::to_string(host) + limit);
  return limited.code == 0 ? "" : limited.output;
}

}  // namespace choir::tests
