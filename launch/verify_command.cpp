// mpirun -n N choir verify CONFIG [key=value ...]: checks that the layout computes what one rank computes.
#include "launch/verify_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "framework/core/quantity.h"
#include "framework/train/trainer.h"
#include "framework/train/verify.h"
#include "launch/command_line.h"

namespace choir {

int verify(const Config& asked, MpiProcess& process, const MakeMesh& make) {
  throw_if_any(check_launcher(process));
  throw_if_any(validate(asked, process.ranks()));
  const Config config = narrowed(asked, process.ranks());
  throw_if_any(validate(config, process.ranks()));
  CallRing ring;
  const auto device = make_device(config, process);
  Mesh mesh = make(MPI_COMM_WORLD, mesh_shape(config, process.ranks()), *device, ring);
  Mesh alone = make_mesh(MPI_COMM_SELF, {}, *device, ring);
  const std::vector<Comparison> comparisons = verify_layout(config, *device, mesh, alone);

  int mismatches = 0;
  const Comparison* worst = nullptr;
  for (const Comparison& c : comparisons) {
    if (!c.holds()) {
      ++mismatches;
      std::printf("MISMATCH %s: differs by %.3g of its root mean square, tolerance %.3g\n", c.what.c_str(),
                  c.difference, c.tolerance);
    }
    if (!c.note.empty()) fmt::print("{}: {}\n", c.what, c.note);
    if (!worst || !(c.difference * worst->tolerance <= worst->difference * c.tolerance)) worst = &c;
  }
  if (process.rank() == 0) {
    fmt::print(
        "{} on {} ({}; layers {}, heads {}, head width {}, {} {}; {}): {}\n",
        quantity(std::ssize(comparisons), "comparison"), quantity(process.ranks(), "rank"),
        describe_layout(config.parallel, mesh.shape, config.parallel.context_kind), config.model.layers,
        config.model.attention.heads, config.model.head_width(),
        config.model.is_classifier() ? "classes" : "vocabulary", config.model.outputs(),
        config.train.precision == Precision::f32 ? "f32" : fmt::format("f32 and {}", name_of(config.train.precision)),
        mismatches == 0 ? "the layout computes what one rank computes" : "MISMATCH");
    std::printf("the worst: %s, differs by %.3g of its root mean square, tolerance %.3g\n", worst->what.c_str(),
                worst->difference, worst->tolerance);
  }
  MPI_Bcast(&mismatches, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return mismatches == 0 ? 0 : 1;
}

void add_verify_command(CommandLine& line) {
  CLI::App* verb =
      line.app.add_subcommand("verify", "check that a layout computes what one rank computes (under mpirun)");
  auto arguments = std::make_shared<ConfigArguments>();
  arguments->add_to(*verb);
  verb->callback([&line, arguments] {
    line.run = [&line, arguments] {
      MpiProcess& process = line.start_mpi();
      return verify(arguments->read(), process, make_mesh);
    };
  });
}

}  // namespace choir
