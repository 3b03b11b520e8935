// A training loop written with the library: a two-layer GPT learns to count, its heads split over the ranks.
//
//   mpirun -n 2 build/release/tests/example_01_training_loop        (any number of ranks up to the four heads)
//
// Each sequence counts upwards by one from a random start, modulo the vocabulary, so the next token is always known: a
// model that has learnt it has a loss near zero. The program checks this, and that all ranks agree. Exit code 0: both
// are true.
#include <cstdio>
#include <vector>

#include "framework/comm/mesh.h"
#include "framework/model/families.h"
#include "framework/model/stage.h"
#include "framework/ops/elementwise.h"
#include "framework/optim/optimizer.h"
#include "framework/parallel/shards.h"
#include "kernels/philox.h"

using namespace choir;

int main(int argc, char** argv) {
  int provided = 0, rank = 0, ranks = 1;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  double loss = 0;
  {
    // A device, and a mesh whose only axis with more than one rank is `tensor`: every rank holds some of the heads.
    Device device(1);
    CallRing ring;
    Mesh mesh = make_mesh(MPI_COMM_WORLD, {.tensor = ranks}, device, ring);
    Runtime runtime{.device = device, .seed = 1};
    Context context{.runtime = runtime, .mesh = mesh, .rows = whole_rows(8, 16)};

    // The model declares its parameters; the shards then give them memory and their start values, which are the same
    // for any number of ranks.
    const ModelConfig config{.layers = 2, .width = 32, .vocabulary = 23, .context = 16, .attention = {.heads = 4}};
    ParameterStore parameters;
    const TensorShare share{.rank = mesh.tensor->rank(), .size = mesh.tensor->size()};
    const Stage model(make_parts(config, Recompute::none), share, parameters);
    Shards shards(parameters, {.zero = 0}, context);
    Optimizer optimizer({.rate = 3e-3, .weight_decay = 0}, parameters, shards, context);
    runtime.scalars = runtime.empty({sizeof(kernels::StepScalars)}, DType::u8);
    const Tensor loss_sum = runtime.empty({1}, DType::f64);

    const auto tokens = static_cast<std::size_t>(context.rows.count());
    std::vector<std::int32_t> ids(tokens), targets(tokens);
    for (std::int64_t step = 1; step <= 300; ++step) {
      for (std::size_t i = 0; i < tokens; ++i) {
        const auto sequence = i / 16, position = i % 16;
        const std::uint32_t start = kernels::philox_word(7, static_cast<std::uint64_t>(step), sequence);
        ids[i] = static_cast<std::int32_t>((start + position) % 23);
        targets[i] = (ids[i] + 1) % 23;
      }
      const kernels::StepScalars scalars = optimizer.scalars(step, 3e-3);
      ops::upload(runtime, &scalars, runtime.scalars);
      shards.begin_step(context);
      ops::fill(runtime, loss_sum, 0.0f);

      // Forward and backward; `saved` holds everything between the two. The scale makes the gradient that of the mean.
      const Batch batch{.ids = ops::to_device(runtime, ids, DType::i32),
                        .targets = ops::to_device(runtime, targets, DType::i32)};
      Stage::Saved saved;
      model.forward(0, {}, batch, {.sum = loss_sum, .scale = 1.0 / static_cast<double>(tokens), .gradient = true},
                    saved, context, shards);
      model.backward(0, {}, saved, context, shards, /*last=*/true);
      shards.finish(context);
      optimizer.step(context);

      ops::download(runtime, loss_sum, &loss);
      loss /= static_cast<double>(tokens);
      if (rank == 0 && step % 50 == 0) std::printf("step %3lld  loss %.4f\n", static_cast<long long>(step), loss);
    }
  }
  double largest = loss, smallest = loss;
  MPI_Allreduce(MPI_IN_PLACE, &largest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  MPI_Allreduce(MPI_IN_PLACE, &smallest, 1, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD);
  MPI_Finalize();
  const bool learnt = loss < 0.1, agree = largest == smallest;
  if (rank == 0)
    std::printf("%s, and the ranks %s\n", learnt ? "it counts" : "it has not learnt to count",
                agree ? "agree" : "differ");
  return learnt && agree ? 0 : 1;
}
