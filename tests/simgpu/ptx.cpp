#include "tests/simgpu/ptx.h"

#include <stdexcept>

#include "tests/simgpu/ptx_block.h"

namespace choir::simgpu {

struct PtxModule::State {
  ptx::Program program;

  const ptx::Kernel& kernel(const std::string& mangled) const {
    const auto found = program.kernels.find(mangled);
    if (found == program.kernels.end()) throw std::runtime_error("the PTX has no kernel " + mangled);
    return found->second;
  }
};

PtxModule::PtxModule(std::string_view text) : state_(std::make_unique<State>(State{.program = ptx::parse(text)})) {}
PtxModule::~PtxModule() = default;

std::string PtxModule::target() const { return state_->program.target; }

std::vector<std::string> PtxModule::kernels() const {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : state_->program.kernels) names.push_back(name);
  return names;
}

bool PtxModule::has(const std::string& mangled) const { return state_->program.kernels.contains(mangled); }

std::vector<std::pair<std::int64_t, std::int64_t>> PtxModule::parameters(const std::string& mangled) const {
  return state_->kernel(mangled).parameters;
}

std::int64_t PtxModule::static_shared_bytes(const std::string& mangled) const {
  return state_->kernel(mangled).static_shared_bytes;
}

int PtxModule::max_threads_per_block(const std::string& mangled) const { return state_->kernel(mangled).max_threads; }

LaunchResult PtxModule::launch(const std::string& mangled, const Launch& launch, MemoryChecker& checker) {
  MemoryChecker::State& shadow = checker.state();
  const std::lock_guard lock(shadow.mutex);
  return ptx::Grid(state_->program, state_->kernel(mangled), launch, shadow).run();
}

}  // namespace choir::simgpu
