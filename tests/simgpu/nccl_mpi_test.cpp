// Every verb over NCCL, in every type, on inputs whose results are exact: compared with ==. One size is larger than the
// pieces of the simulated NCCL. Results are read on the compute stream without any other synchronisation, so that a
// missing event would be found.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <set>
#include <thread>

#include "framework/comm/cuda/nccl_communicator.h"
#include "framework/core/error.h"
#include "tests/comm/ranks.h"
#include "tests/simgpu/gpu_ranks.h"
#include "tests/simgpu/nccl.h"

namespace choir::simgpu::tests {
namespace {

using choir::tests::small_integer;

template <class T>
struct NcclCollectives : GpuRanksTest {
  Communicator& comm = *ranks->mesh.tensor;
  Stream& stream = ranks->device.compute();
  const int size = comm.size(), rank = comm.rank();
  const std::vector<std::int64_t> counts = {1, 7, 1000, 70'001};

  static T as(int value) {
    if constexpr (std::is_same_v<T, bf16>)
      return bf16(static_cast<float>(value));
    else
      return static_cast<T>(value);
  }

  /// Element i of the input of rank r.
  std::vector<T> given(int r, std::int64_t count, std::int64_t first = 0) const {
    std::vector<T> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(as(small_integer(r, first + i)));
    return values;
  }
  Tensor tensor(std::int64_t count, std::int64_t first = 0) { return ranks->tensor(given(rank, count, first)); }
  Tensor empty(Shape shape) { return ranks->empty(std::move(shape), dtype_of<T>); }

  T reduced(std::int64_t i, Reduce op) const {
    int result = small_integer(0, i);
    for (int r = 1; r < size; ++r)
      result = op == Reduce::sum ? result + small_integer(r, i) : std::max(result, small_integer(r, i));
    return as(result);
  }
  std::vector<Reduce> operations() const {
    if (std::is_same_v<T, std::uint8_t>) return {Reduce::max};
    return {Reduce::sum, Reduce::max};
  }
  /// The first element that differs, or -1.
  template <class Expected>
  std::int64_t first_difference(const Tensor& tensor, const Expected& expected) {
    const std::vector<T> values = ranks->values_of<T>(tensor);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (!(static_cast<double>(values[i]) == static_cast<double>(expected(static_cast<std::int64_t>(i)))))
        return static_cast<std::int64_t>(i);
    return -1;
  }
};

using Types = ::testing::Types<float, bf16, double, std::int32_t, std::uint8_t>;
TYPED_TEST_SUITE(NcclCollectives, Types);

TYPED_TEST(NcclCollectives, AllReduce) {
  for (const Reduce op : this->operations())
    for (const std::int64_t count : this->counts) {
      const Tensor x = this->tensor(count);
      this->comm.all_reduce(x, op, this->stream, "test");
      EXPECT_EQ(this->first_difference(x, [&](std::int64_t i) { return this->reduced(i, op); }), -1) << count;
    }
}

TYPED_TEST(NcclCollectives, AllGather) {
  for (const bool in_place : {false, true})
    for (const std::int64_t count : this->counts) {
      const Tensor out = this->empty({this->size, count});
      const Tensor block = out.slice_rows(this->rank, this->rank + 1);
      const std::vector<TypeParam> mine = this->given(this->rank, count);
      if (in_place) this->ranks->device.upload(mine.data(), block.raw(), block.bytes());
      this->comm.all_gather(in_place ? block : this->ranks->tensor(mine), out, this->stream, "test");
      const auto expected = [&](std::int64_t i) {
        return this->as(small_integer(static_cast<int>(i / count), i % count));
      };
      EXPECT_EQ(this->first_difference(out, expected), -1) << count;
    }
}

TYPED_TEST(NcclCollectives, ReduceScatter) {
  for (const Reduce op : this->operations())
    for (const bool in_place : {false, true})
      for (const std::int64_t count : this->counts) {
        const Tensor in = this->tensor(this->size * count).reshape({this->size, count});
        const Tensor block = in.slice_rows(this->rank, this->rank + 1);
        const Tensor out = in_place ? block : this->empty({count});
        this->comm.reduce_scatter(in, out, op, this->stream, "test");
        const auto expected = [&](std::int64_t i) { return this->reduced(this->rank * count + i, op); };
        EXPECT_EQ(this->first_difference(out, expected), -1) << count;
      }
}

TYPED_TEST(NcclCollectives, AllToAll) {
  for (const std::int64_t count : this->counts) {
    const Tensor in = this->tensor(this->size * count), out = this->empty({this->size, count});
    this->comm.all_to_all(in, out, this->stream, "test");
    const auto expected = [&](std::int64_t i) {
      return this->as(small_integer(static_cast<int>(i / count), this->rank * count + i % count));
    };
    EXPECT_EQ(this->first_difference(out, expected), -1) << count;
  }
}

TYPED_TEST(NcclCollectives, BroadcastFromEveryRank) {
  for (int root = 0; root < this->size; ++root)
    for (const std::int64_t count : this->counts) {
      const Tensor x = this->tensor(count);
      this->comm.broadcast(x, root, this->stream, "test");
      const auto expected = [&](std::int64_t i) { return this->as(small_integer(root, i)); };
      EXPECT_EQ(this->first_difference(x, expected), -1) << count;
    }
}

// Around the ring in both directions at once, and a message to oneself: with two ranks both neighbours are one.
TYPED_TEST(NcclCollectives, ExchangeAroundTheRing) {
  const int next = (this->rank + 1) % this->size, previous = (this->rank - 1 + this->size) % this->size;
  for (const std::int64_t count : this->counts) {
    const Tensor up = this->tensor(count), down = this->tensor(2 * count, 11), self = this->tensor(count, 17);
    const Tensor from_below = this->empty({count}), from_above = this->empty({2 * count});
    const Tensor from_self = this->empty({count});
    this->comm.exchange({{up, next}, {down, previous}, {self, this->rank}},
                        {{from_below, previous}, {from_above, next}, {from_self, this->rank}}, this->stream, "test");
    const auto sent_by = [&](int from, std::int64_t first) {
      return [this, from, first](std::int64_t i) { return this->as(small_integer(from, first + i)); };
    };
    EXPECT_EQ(this->first_difference(from_below, sent_by(previous, 0)), -1);
    EXPECT_EQ(this->first_difference(from_above, sent_by(next, 11)), -1);
    EXPECT_EQ(this->first_difference(from_self, sent_by(this->rank, 17)), -1);
  }
}

using FloatNcclCollectives = NcclCollectives<float>;

TEST_F(FloatNcclCollectives, BarrierWaitsForTheLast) {
  // Each rank sleeps, then notes the time; after the barrier all have done so.
  std::this_thread::sleep_for(std::chrono::milliseconds(20 * rank));
  const auto now = [] {  // the host's clock: MPI_Wtime of Open MPI 5 starts with each process
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  const double before = now();
  comm.barrier(stream, "test");
  ranks->device.synchronize();
  double times[] = {before, -now()};
  MPI_Allreduce(MPI_IN_PLACE, times, 2, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  EXPECT_LE(times[0], -times[1]);  // the last arrival is before the first departure
}

// NCCL's kernels use fmaxf: unlike with MPI here, the maximum of a number and NaN is the number.
TEST_F(FloatNcclCollectives, MaximumIgnoresNan) {
  const Tensor x = ranks->tensor(std::vector<float>{rank == 0 ? std::numeric_limits<float>::quiet_NaN() : 1.f});
  comm.all_reduce(x, Reduce::max, stream, "nan");
  const float value = ranks->values_of<float>(x)[0];
  EXPECT_TRUE(size == 1 ? std::isnan(value) : value == 1.f) << value;
}

// Each sum along one axis, on communicators of two sizes at once.
TEST_F(FloatNcclCollectives, AxesOfAMesh) {
  const int tensor_ranks = size % 2 == 0 ? 2 : 1;
  GpuRanks grid({.tensor = tensor_ranks, .data = size / tensor_ranks});
  int world_rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  const auto sum_of = [&](Communicator& axis) {
    const Tensor x = grid.tensor(std::vector<float>{static_cast<float>(1 << world_rank)});
    axis.all_reduce(x, Reduce::sum, grid.device.compute(), "axis");
    return static_cast<int>(grid.values_of<float>(x)[0]);
  };
  const auto expected = [&](Axis axis) {
    int sum = 0;
    for (const int member : grid.mesh.shape.group(axis, world_rank).members()) sum += 1 << member;
    return sum;
  };
  for (int repeat = 0; repeat < 3; ++repeat) {
    EXPECT_EQ(sum_of(*grid.mesh.tensor), expected(Axis::tensor));
    EXPECT_EQ(sum_of(*grid.mesh.gradient), expected(Axis::data));
    EXPECT_EQ(sum_of(*grid.mesh.pipeline), expected(Axis::pipeline));
    EXPECT_EQ(sum_of(*grid.mesh.world), (1 << size) - 1);
  }
}

// The compute stream may reuse the memory of a tensor of a call on the communication stream only after it has waited.
TEST_F(FloatNcclCollectives, MemoryIsHeldUntilAnotherStreamWaits) {
  if (size == 1) return;  // nothing is enqueued
  Event ready;
  const void* address = nullptr;
  {
    const Tensor x = tensor(1000);
    address = x.raw();
    ready.record(stream);
    ready.wait(comm.stream());
    comm.all_reduce(x, Reduce::sum, comm.stream(), "overlapped");
  }
  EXPECT_NE(tensor(1000).raw(), address);
  comm.barrier(stream, "waits for all before");
  EXPECT_EQ(tensor(1000).raw(), address);
}

// A sum that a layer waits for does not wait for the gradients of another axis.
TEST_F(FloatNcclCollectives, CommunicatorsOfSeveralRanksHaveStreamsOfTheirOwn) {
  const int tensor_ranks = size % 2 == 0 ? 2 : 1;
  GpuRanks grid({.tensor = tensor_ranks, .data = size / tensor_ranks});
  std::set<CUstream_st*> streams = {grid.device.compute().cuda()};
  for (Communicator* communicator : grid.mesh.communicators())
    if (communicator->size() > 1) {
      EXPECT_TRUE(streams.insert(communicator->stream().cuda()).second) << communicator->axis();
    }
}

TEST_F(FloatNcclCollectives, CallsEndInTheRingWhenTheGpuHasEndedThem) {
  const Tensor x = tensor(10);
  comm.all_reduce(x, Reduce::sum, stream, "blocks.7.attention.out");
  ranks->mesh.world->barrier(stream, "end of step");
  ranks->device.synchronize();
  for (Communicator* communicator : ranks->mesh.communicators()) EXPECT_EQ(communicator->problem(), "");
  const std::vector<Call> calls = ranks->ring.calls();
  if (size == 1) {
    EXPECT_TRUE(calls.empty());
    return;
  }
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_STREQ(calls[0].verb, "all_reduce");
  EXPECT_STREQ(calls[0].label, "blocks.7.attention.out");
  EXPECT_STREQ(calls[1].axis, "world");
  EXPECT_NE(calls[0].ended, 0);
  EXPECT_NE(calls[1].ended, 0);
  EXPECT_FALSE(ranks->ring.in_call());
}

template <class Function>
std::string error_of(Function&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// An asynchronous error is reported when it is queried; an abort ends the waiting call; and the next call fails.
TEST_F(FloatNcclCollectives, ErrorsHaveTheMessageOfNccl) {
  if (size == 1) return;  // NCCL is not called
  const Tensor x = tensor(8);
  fail_collective(ncclRemoteError, 0);
  comm.all_reduce(x, Reduce::sum, stream, "gradients");
  const std::string words = comm.problem();
  const std::string expected = "rank " + std::to_string(rank) +
                               " of tensor: NCCL on GPU 0: remote process exited or there was a network error: a fault "
                               "that the test requested";
  EXPECT_EQ(words, expected);
  EXPECT_TRUE(ranks->ring.in_call());

  const std::string failed = error_of([&] { comm.all_reduce(x, Reduce::sum, stream, "more"); });
  EXPECT_NE(failed.find("all_reduce of tensor (more), call #2, failed: ncclAllReduce on GPU 0: remote process exited"),
            std::string::npos)
      << failed;
  comm.abort();
  ranks->device.synchronize();  // or the test would hang here
  const std::string after = error_of([&] { comm.barrier(stream, "late"); });
  EXPECT_NE(after.find("the communicator has been aborted"), std::string::npos) << after;
}

// Start-up has a time limit: the last rank receives the unique id, and then does not join.
TEST_F(FloatNcclCollectives, ARankThatDoesNotJoinIsAnError) {
  if (size == 1) return;  // no other rank to wait for
  if (rank == size - 1) {
    ncclUniqueId id = {};
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
  } else {
    const std::string words =
        error_of([&] { make_nccl_mesh(MPI_COMM_WORLD, {.tensor = size}, ranks->device, ranks->ring, 0.2); });
    const auto says = [&](const std::string& text) { return words.find(text) != std::string::npos; };
    EXPECT_TRUE(says("rank " + std::to_string(rank) +
                     " cannot make NCCL's communicator of world: ncclCommInitRankConfig on GPU 0: "))
        << words;
    // The rank whose time limit ends first aborts, and the others may notice that before their own limit.
    EXPECT_TRUE(says("has not ended after 0.2 s") || says("has aborted")) << words;
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

}  // namespace
}  // namespace choir::simgpu::tests
