// `choir verify` on a mesh that makes a mistake: faulty_verify FAULT CONFIG [key=value ...]
//
//   none               no mistake
//   zero:PARAMETER     the gradient of a parameter is zero
//   heads:PARAMETER    the first two heads of a rank are exchanged in the gradient of a parameter
//   missing:LABEL      the all-reduce of a layer's forward pass over the tensor ranks is left out
#include <cstdio>

#include "framework/train/trainer.h"
#include "framework/train/verify.h"
#include "launch/command_line.h"
#include "launch/verify_command.h"
#include "tests/support/faulty_mesh.h"

int main(int argc, char** argv) {
  using namespace choir;
  try {
    MpiProcess process(&argc, &argv);
    const std::string word = argv[1], kind = word.substr(0, word.find(':')), name = word.substr(word.find(':') + 1);
    const Config config =
        ConfigArguments{.file = argv[2], .words = std::vector<std::string>(argv + 3, argv + argc)}.read();
    const auto make = [&](MPI_Comm world, const MeshShape& shape, Device& device, CallRing& ring) {
      const Config small = narrowed(config, shape.ranks());
      tests::Fault fault;
      if (kind == "zero") fault = tests::fault_of_gradient(small, shape, name, tests::set_to_zero);
      if (kind == "heads")
        fault = tests::fault_of_gradient(small, shape, name, tests::swap_heads(small.model.head_width()));
      if (kind == "missing")
        fault = {.axis = "tensor", .verb = "all_reduce", .label = name, .occurrence = 0, .of = 2, .damage = {}};
      return tests::make_faulty_mesh(world, shape, device, ring, fault);
    };
    return verify(config, process, make);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "faulty_verify: %s\n", error.what());
    return 2;
  }
}
