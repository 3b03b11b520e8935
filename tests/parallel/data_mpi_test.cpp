// Data parallelism on gradients that are small integers, so that sums are exact: every bucket is summed once, over the
// data ranks only, each when its groups are final, with and without ZeRO, with streams of both kinds.
#include <gtest/gtest.h>
#include <mpi.h>

#include "framework/ops/elementwise.h"
#include "framework/parallel/data.h"

namespace choir::tests {
namespace {

struct Case {
  bool zero;
  std::int64_t bucket_elements;
  StreamMode streams;
};

float gradient_of(int rank, std::int64_t i) { return static_cast<float>((i * 5 + rank * 3 + i / 7) % 8); }

TEST(DataParallelism, SumsEveryBucketOnceAndGathersWhatOtherRanksUpdated) {
  int ranks = 0, rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const int tensor = ranks == 4 ? 2 : 1, data_ranks = ranks / tensor;
  for (const bool zero : {false, true})
    for (const std::int64_t bucket_elements : {1, 200, 1 << 20})
      for (const StreamMode streams : {StreamMode::immediate, StreamMode::threaded}) {
        SCOPED_TRACE("zero " + std::to_string(zero) + ", buckets of " + std::to_string(bucket_elements));
        CallRing ring;
        Device device(1, streams);
        Mesh mesh = make_mesh(MPI_COMM_WORLD, {.tensor = tensor, .data = data_ranks}, device, ring);
        Runtime runtime{.device = device};
        ParameterStore store;
        for (const std::int64_t rows : {3, 50, 1, 40}) {
          store.begin_group();
          store.add_weight(rows, 11, true);
        }
        store.allocate(runtime, bucket_alignment(data_ranks));
        DataParallel data(store, mesh, zero, bucket_elements);
        Context context{.runtime = runtime, .mesh = mesh};

        for (int step = 0; step < 2; ++step) {  // twice: finish() makes it ready again
          for (int group = store.groups() - 1; group >= 0; --group) {
            // A group is written when backward reaches it, on the compute stream: a bucket that starts early loses it.
            device.compute().enqueue([&store, group, rank] {
              for (std::int64_t i = store.group_begin(group); i < store.group_end(group); ++i)
                store.gradient.data<float>()[i] = gradient_of(rank, i);
            });
            data.group_final(group, context);
          }
          data.finish(context);
          device.synchronize();
          std::int64_t updated = 0;
          for (const FlatRange& range : data.updated()) {
            updated += range.count();
            for (std::int64_t i = range.begin; i < range.end; ++i) {
              float sum = 0;
              for (const int peer : mesh.shape.gradient_group(rank).members()) sum += gradient_of(peer, i);
              ASSERT_EQ(store.gradient.data<float>()[i], sum) << "element " << i;
            }
          }
          EXPECT_EQ(updated, zero ? store.size() / data_ranks : store.size());
        }
        // How many data ranks hold each element.
        const auto holders = [&](const std::vector<FlatRange>& ranges) {
          std::vector<std::int32_t> holds(static_cast<std::size_t>(store.size()));
          for (const FlatRange& range : ranges)
            for (std::int64_t i = range.begin; i < range.end; ++i) ++holds[static_cast<std::size_t>(i)];
          const Tensor sum = ops::to_device(runtime, holds, DType::i32);
          mesh.gradient->all_reduce(sum, Reduce::sum, device.compute(), "holders");
          ops::download(runtime, sum, holds.data());
          return holds;
        };
        EXPECT_EQ(holders(data.counted()), std::vector<std::int32_t>(static_cast<std::size_t>(store.size()), 1))
            << "an element is counted by no rank or by several";
        EXPECT_EQ(holders(data.updated()),
                  std::vector<std::int32_t>(static_cast<std::size_t>(store.size()), zero ? 1 : data_ranks));

        for (const FlatRange& range : data.updated())
          for (std::int64_t i = range.begin; i < range.end; ++i) store.master.data<float>()[i] = static_cast<float>(i);
        data.gather_masters(context);
        device.synchronize();
        for (std::int64_t i = 0; i < store.size(); ++i) ASSERT_EQ(store.master.data<float>()[i], static_cast<float>(i));
      }
}

}  // namespace
}  // namespace choir::tests
