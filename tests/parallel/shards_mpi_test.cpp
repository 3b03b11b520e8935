// Shards on gradients that are small integers, so that sums are exact: every gradient is summed once, over the data
// ranks only, when nobody holds it any longer, and every rank reads the values that others update, in every stage, with
// streams of both kinds.
#include <gtest/gtest.h>
#include <mpi.h>

#include "framework/ops/elementwise.h"
#include "framework/parallel/shards.h"

namespace choir::tests {
namespace {

constexpr int micro_batches = 3;

float gradient_of(int rank, std::int64_t i, int step, int micro_batch) {
  return static_cast<float>((i * 5 + rank * 3 + i / 7 + micro_batch + 2 * step) % 8);
}
float master_of(std::int64_t i, int step) { return static_cast<float>((i + 13 * step) % 251); }

struct ShardRun {
  ShardRun(int zero, int shard, std::int64_t bucket_elements, StreamMode streams, DType type)
      : device(1, streams),
        mesh(make_mesh(MPI_COMM_WORLD, shape(shard), device, ring)),
        runtime{.device = device, .compute_type = type},
        context{.runtime = runtime, .mesh = mesh},
        shards(declare(), {.zero = zero, .late = {true}, .bucket_elements = bucket_elements}, context) {}

  static MeshShape shape(int shard) {
    int ranks = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const int tensor = ranks == 4 ? 2 : 1;
    return {.tensor = tensor, .data = ranks / tensor, .shard = shard};
  }
  ParameterStore& declare() {
    for (const std::int64_t rows : {3, 50, 1, 40}) {
      store.begin_group();
      store.add_weight(rows, 11, true)->overwritten = rows > 1;
      store.add_weight(rows, 1, false);
    }
    return store;
  }
  void for_each_weight(int group, const std::function<void(Weight&)>& call) {
    for (Weight& weight : store.weights())
      if (weight.group == group) call(weight);
  }
  /// Backward writes a group when it comes to it, on the compute stream: a reduction that starts early loses it.
  void add_gradients(int group, int rank, int step, int micro_batch) {
    for_each_weight(group, [&](Weight& weight) {
      device.compute().enqueue([=, to = weight.gradient.data<float>(), count = weight.gradient.count(),
                                first = weight.offset, is_new = std::exchange(weight.is_new, false)] {
        for (std::int64_t i = 0; i < count; ++i)
          to[i] = (is_new ? 0 : to[i]) + gradient_of(rank, first + i, step, micro_batch);
      });
    });
  }
  bool in_a_weight(std::int64_t flat) {
    for (const Weight& weight : store.weights())
      if (weight.offset <= flat && flat < weight.offset + weight.rows * weight.width) return true;
    return false;
  }

  CallRing ring;
  Device device;
  Mesh mesh;
  Runtime runtime;
  ParameterStore store;
  Context context;
  Shards shards;
};

/// Compares what layers read with what the ranks have updated.
void expect_values(ShardRun& run, int step) {
  const int groups = run.store.groups();
  for (int group = 0; group < groups; ++group) {
    run.shards.acquire(group, run.context);
    if (group + 1 < groups) run.shards.prefetch(group + 1, run.context);
    run.device.compute().synchronize();
    run.for_each_weight(group, [&](Weight& weight) {
      for (std::int64_t i = 0; i < weight.value.count(); ++i) {
        const float value = weight.value.dtype() == DType::bf16 ? static_cast<float>(weight.value.data<bf16>()[i])
                                                                : weight.value.data<float>()[i];
        ASSERT_EQ(value, master_of(weight.offset + i, step)) << "element " << weight.offset + i;
      }
    });
    run.shards.release(group);
  }
}

void expect_two_steps(int zero, int shard, std::int64_t bucket_elements, StreamMode streams, DType type) {
  ShardRun run(zero, shard, bucket_elements, streams, type);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::vector<int> peers = run.mesh.shape.gradient_group(rank).members();
  for (int step = 0; step < 2; ++step) {  // twice: finish() makes it ready again
    run.shards.begin_step(run.context);
    for (int m = 0; m < micro_batches; ++m)
      for (int group = run.store.groups() - 1; group >= 0; --group) {
        run.shards.open(group, run.context);
        run.add_gradients(group, rank, step, m);
        run.shards.close(group, run.context);
        const bool is_whole = zero < 2 || group == 0;  // the first one is late
        run.for_each_weight(group, [&](Weight& w) { EXPECT_EQ(static_cast<bool>(w.gradient), is_whole); });
        if (m == micro_batches - 1) run.shards.final(group, run.context);
      }
    run.shards.finish(run.context);
    run.device.synchronize();

    for (const Bucket& bucket : run.shards.buckets()) {
      for (std::int64_t i = bucket.updated.begin; i < bucket.updated.end; ++i) {
        float sum = 0;
        for (const int peer : peers)
          for (int m = 0; m < micro_batches; ++m)
            if (run.in_a_weight(i)) sum += gradient_of(peer, i, step, m);
        ASSERT_EQ(bucket.gradient.data<float>()[i - bucket.updated.begin], sum) << "element " << i;
        ASSERT_EQ(run.shards.gradients().data<float>()[run.shards.gradient_offset(i)], sum) << "element " << i;
        bucket.master.data<float>()[i - bucket.updated.begin] = master_of(i, step);
      }
    }
    run.shards.round(run.runtime);
    run.shards.publish(run.context);
    expect_values(run, step);
  }
  run.device.synchronize();
}

TEST(Shards, SumEveryGradientOnceAndGatherWhatOtherRanksUpdated) {
  for (const auto& [zero, shard] : {std::pair{0, 0}, {1, 0}, {2, 0}, {3, 0}, {0, 1}, {1, 1}, {3, 1}})
    for (const std::int64_t bucket_elements : {1, 200, 1 << 20})
      for (const StreamMode streams : {StreamMode::immediate, StreamMode::threaded})
        for (const DType type : {DType::f32, DType::bf16}) {
          SCOPED_TRACE("zero " + std::to_string(zero) + ", shard " + std::to_string(shard) + ", buckets of " +
                       std::to_string(bucket_elements) + ", " + name_of(type));
          expect_two_steps(zero, shard, bucket_elements, streams, type);
          if (testing::Test::HasFailure()) return;
        }
}

TEST(Shards, ZeroAGradientThatNothingWasAddedTo) {
  for (const int zero : {0, 2}) {
    ShardRun run(zero, 0, 200, StreamMode::immediate, DType::f32);
    for (int step = 0; step < 2; ++step) {  // the second time, the memory holds what the first one has left
      run.shards.begin_step(run.context);
      for (int group = run.store.groups() - 1; group >= 0; --group) {
        run.shards.open(group, run.context);
        if (step == 0) run.add_gradients(group, 0, 0, 0);
        run.shards.close(group, run.context);
        run.shards.final(group, run.context);
      }
      run.shards.finish(run.context);
    }
    for (const Bucket& bucket : run.shards.buckets())
      for (std::int64_t i = 0; i < bucket.updated.count(); ++i)
        ASSERT_EQ(bucket.gradient.data<float>()[i], 0.0f) << "zero " << zero << ", element " << i;
  }
}

TEST(Shards, HoldValuesUntilTheLastReaderReleasesThem) {
  ShardRun run(3, 0, 200, StreamMode::immediate, DType::f32);
  Weight& weight = run.store.weights().front();
  EXPECT_FALSE(weight.value);
  run.shards.acquire(0, run.context);
  run.shards.acquire(0, run.context);
  run.shards.release(0);
  EXPECT_TRUE(weight.value);
  run.shards.release(0);
  EXPECT_FALSE(weight.value);
}

TEST(Shards, ReduceOnceWhenTheLastWriterCloses) {
  ShardRun run(3, 0, 1 << 20, StreamMode::immediate, DType::f32);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  run.device.ledger().enabled = true;
  run.shards.begin_step(run.context);
  for (int m = 0; m < 2; ++m) {
    run.shards.open(1, run.context);
    run.add_gradients(1, rank, 0, m);
  }
  run.shards.close(1, run.context);
  EXPECT_TRUE(run.device.ledger().traffic().empty());
  run.shards.close(1, run.context);
  run.shards.final(0, run.context);
  run.shards.finish(run.context);
  for (const auto& traffic : run.device.ledger().traffic())
    EXPECT_EQ(traffic.messages, 4) << "of two groups, the matrices and the vectors";
  const Bucket* bucket = nullptr;
  for (const Bucket& each : run.shards.buckets())
    if (each.group == 1 && each.matrix) bucket = &each;
  float sum = 0;
  for (const int peer : run.mesh.shape.gradient_group(rank).members())
    for (int m = 0; m < 2; ++m) sum += gradient_of(peer, bucket->updated.begin, 0, m);
  EXPECT_EQ(bucket->gradient.data<float>()[0], sum);
}

}  // namespace
}  // namespace choir::tests
