// Every verb, in every type, on inputs whose results are exact: compared with ==. Sizes lie on both sides of the
// borders between "gathered by everyone" and "reduced by blocks", and between one piece and several; one is above 16
// MB.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "framework/comm/mpi_communicator.h"
#include "framework/core/error.h"
#include "tests/comm/ranks.h"

namespace choir::tests {
namespace {

template <class T>
struct Collectives : ::testing::Test {
  Ranks ranks;
  Communicator& comm = *ranks.mesh.tensor;
  Stream& stream = ranks.device.compute();
  const int size = comm.size(), rank = comm.rank();
  const std::vector<std::int64_t> counts = {1, 7, 1000, 100'003};

  static T as(int value) {
    if constexpr (std::is_same_v<T, bf16>)
      return bf16(static_cast<float>(value));
    else
      return static_cast<T>(value);
  }
  static int as_int(T value) { return static_cast<int>(value); }

  /// What rank r gives as element i.
  std::vector<T> given(int r, std::int64_t count, std::int64_t first = 0) const {
    std::vector<T> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(as(small_integer(r, first + i)));
    return values;
  }
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
  static std::int64_t first_difference(const Tensor& tensor, const Expected& expected) {
    for (std::int64_t i = 0; i < tensor.count(); ++i)
      if (as_int(tensor.data<T>()[i]) != as_int(expected(i))) return i;
    return -1;
  }
};

using Types = ::testing::Types<float, bf16, double, std::int32_t, std::uint8_t>;
TYPED_TEST_SUITE(Collectives, Types);

TYPED_TEST(Collectives, AllReduce) {
  for (const Reduce op : this->operations())
    for (const std::int64_t count : this->counts) {
      const Tensor x = this->ranks.tensor(this->given(this->rank, count));
      this->comm.all_reduce(x, op, this->stream, "test");
      EXPECT_EQ(this->first_difference(x, [&](std::int64_t i) { return this->reduced(i, op); }), -1) << count;
    }
}

TYPED_TEST(Collectives, AllGather) {
  for (const bool in_place : {false, true})
    for (const std::int64_t count : this->counts) {
      const Tensor out = this->ranks.empty({this->size, count}, dtype_of<TypeParam>);
      std::memset(out.raw(), 0, static_cast<std::size_t>(out.bytes()));
      const Tensor mine = this->ranks.tensor(this->given(this->rank, count));
      const Tensor block = out.slice_rows(this->rank, this->rank + 1);
      if (in_place) std::memcpy(block.raw(), mine.raw(), static_cast<std::size_t>(mine.bytes()));
      this->comm.all_gather(in_place ? block : mine, out, this->stream, "test");
      EXPECT_EQ(
          this->first_difference(
              out, [&](std::int64_t i) { return this->as(small_integer(static_cast<int>(i / count), i % count)); }),
          -1)
          << count;
    }
}

TYPED_TEST(Collectives, ReduceScatter) {
  for (const Reduce op : this->operations())
    for (const bool in_place : {false, true})
      for (const std::int64_t count : this->counts) {
        const Tensor in = this->ranks.tensor(this->given(this->rank, this->size * count)).reshape({this->size, count});
        const Tensor block = in.slice_rows(this->rank, this->rank + 1);
        const Tensor out = in_place ? block : this->ranks.empty({count}, dtype_of<TypeParam>);
        this->comm.reduce_scatter(in, out, op, this->stream, "test");
        EXPECT_EQ(
            this->first_difference(out, [&](std::int64_t i) { return this->reduced(this->rank * count + i, op); }), -1)
            << count;
      }
}

TYPED_TEST(Collectives, AllToAll) {
  for (const std::int64_t count : this->counts) {
    const Tensor in = this->ranks.tensor(this->given(this->rank, this->size * count));
    const Tensor out = this->ranks.empty({this->size, count}, dtype_of<TypeParam>);
    this->comm.all_to_all(in, out, this->stream, "test");
    EXPECT_EQ(this->first_difference(out,
                                     [&](std::int64_t i) {
                                       return this->as(
                                           small_integer(static_cast<int>(i / count), this->rank * count + i % count));
                                     }),
              -1)
        << count;
  }
}

TYPED_TEST(Collectives, BroadcastFromEveryRank) {
  for (int root = 0; root < this->size; ++root)
    for (const std::int64_t count : this->counts) {
      const Tensor x = this->ranks.tensor(this->given(this->rank, count));
      this->comm.broadcast(x, root, this->stream, "test");
      EXPECT_EQ(this->first_difference(x, [&](std::int64_t i) { return this->as(small_integer(root, i)); }), -1)
          << count;
    }
}

// Around the ring in both directions at once, and a message to oneself: with two ranks both neighbours are one.
TYPED_TEST(Collectives, ExchangeAroundTheRing) {
  const int next = (this->rank + 1) % this->size, previous = (this->rank - 1 + this->size) % this->size;
  for (const std::int64_t count : this->counts) {
    const Tensor up = this->ranks.tensor(this->given(this->rank, count));
    const Tensor down = this->ranks.tensor(this->given(this->rank, 2 * count, 11));
    const Tensor self = this->ranks.tensor(this->given(this->rank, count, 17));
    const Tensor from_below = this->ranks.empty({count}, dtype_of<TypeParam>);
    const Tensor from_above = this->ranks.empty({2 * count}, dtype_of<TypeParam>);
    const Tensor from_self = this->ranks.empty({count}, dtype_of<TypeParam>);
    this->comm.exchange({{up, next}, {down, previous}, {self, this->rank}},
                        {{from_below, previous}, {from_above, next}, {from_self, this->rank}}, this->stream, "test");
    EXPECT_EQ(this->first_difference(from_below, [&](std::int64_t i) { return this->as(small_integer(previous, i)); }),
              -1);
    EXPECT_EQ(this->first_difference(from_above, [&](std::int64_t i) { return this->as(small_integer(next, 11 + i)); }),
              -1);
    EXPECT_EQ(
        this->first_difference(from_self, [&](std::int64_t i) { return this->as(small_integer(this->rank, 17 + i)); }),
        -1);
  }
}

using FloatCollectives = Collectives<float>;

TEST_F(FloatCollectives, MoreThan16Megabytes) {
  const std::int64_t count = 4'300'007;  // 17.2 MB
  const Tensor x = ranks.tensor(given(rank, count));
  comm.all_reduce(x, Reduce::sum, stream, "large");
  EXPECT_EQ(first_difference(x, [&](std::int64_t i) { return reduced(i, Reduce::sum); }), -1);

  const Tensor y = ranks.tensor(given(rank, count));
  comm.broadcast(y, size - 1, stream, "large");
  EXPECT_EQ(first_difference(y, [&](std::int64_t i) { return as(small_integer(size - 1, i)); }), -1);

  const Tensor all = ranks.empty({size, count}, DType::f32);
  comm.all_gather(ranks.tensor(given(rank, count)), all, stream, "large");
  EXPECT_EQ(
      first_difference(all, [&](std::int64_t i) { return as(small_integer(static_cast<int>(i / count), i % count)); }),
      -1);
}

TEST_F(FloatCollectives, BarrierWaitsForTheLast) {
  // Each rank sleeps, then says so; after the barrier all have said so. The clock is the host's: MPI_Wtime of Open MPI
  // 5 starts with each process.
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(20 * rank));
  const double before = now();
  comm.barrier(stream, "test");
  const double after = now();
  const Tensor times = ranks.tensor(std::vector<double>{before, -after});
  comm.all_reduce(times, Reduce::max, stream, "test");
  EXPECT_LE(times.data<double>()[0], -times.data<double>()[1]);  // the last arrival is before the first departure
}

/// Random values of very different size, so that every order of addition gives other bits.
std::vector<float> random_values(int rank, std::int64_t count) {
  std::mt19937 engine(static_cast<unsigned>(rank) + 1u);
  std::normal_distribution<float> normal;
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(normal(engine) * std::exp2(static_cast<float>(i % 20)));
  return values;
}

template <class T>
void expect_same_bits_in_rank_order(Ranks& ranks, std::int64_t count) {
  Communicator& comm = *ranks.mesh.tensor;
  Stream& stream = ranks.device.compute();
  const auto typed = [&](int r) {
    std::vector<T> result;
    for (const float value : random_values(r, count)) result.push_back(static_cast<T>(value));
    return result;
  };
  const Tensor x = ranks.tensor(typed(comm.rank())), again = ranks.tensor(typed(comm.rank()));
  comm.all_reduce(x, Reduce::sum, stream, "bits");
  comm.all_reduce(again, Reduce::sum, stream, "bits");
  const auto bytes = static_cast<std::size_t>(x.bytes());
  EXPECT_EQ(std::memcmp(x.raw(), again.raw(), bytes), 0) << count;

  const Tensor all = ranks.empty({comm.size(), count}, dtype_of<T>);
  comm.all_gather(x, all, stream, "bits");
  for (int r = 0; r < comm.size(); ++r)
    EXPECT_EQ(std::memcmp(all.slice_rows(r, r + 1).raw(), x.raw(), bytes), 0) << "rank " << r << " has other bits";

  std::vector<Accumulate<T>> sum(static_cast<std::size_t>(count));
  for (int r = 0; r < comm.size(); ++r) {
    const std::vector<T> values = typed(r);
    for (std::size_t i = 0; i < sum.size(); ++i)
      sum[i] = r == 0 ? static_cast<Accumulate<T>>(values[i]) : sum[i] + static_cast<Accumulate<T>>(values[i]);
  }
  std::vector<T> expected;
  for (const Accumulate<T> value : sum) expected.push_back(static_cast<T>(value));
  EXPECT_EQ(std::memcmp(expected.data(), x.raw(), bytes), 0) << "not the sum in rank order, " << count;
}

TEST_F(FloatCollectives, SameBitsOnEveryRankAndInRankOrder) {
  for (const std::int64_t count : {1, 1000, 5000, 300'001}) {
    expect_same_bits_in_rank_order<float>(ranks, count);
    expect_same_bits_in_rank_order<double>(ranks, count);
    expect_same_bits_in_rank_order<bf16>(ranks, count);
  }
}

// bf16 has 8 bits: from 256 on its values are 2 apart. 256 + 1 + 1 is 258 rounded once, but 256 rounded at each step.
TEST_F(FloatCollectives, Bf16RoundsOnce) {
  for (const std::int64_t count : {8, 100'000}) {
    const Tensor x = ranks.tensor(std::vector<bf16>(static_cast<std::size_t>(count), bf16(rank == 0 ? 256.f : 1.f)));
    comm.all_reduce(x, Reduce::sum, stream, "rounding");
    const float expected[] = {256, 256, 258, 260};  // 257 and 259 lie in the middle: ties to even
    for (const bf16 value : values_of<bf16>(x)) ASSERT_EQ(static_cast<float>(value), expected[size - 1]);
  }
}

// A rank that finds a NaN must be heard by all, or they would decide differently and wait for each other for ever.
TEST_F(FloatCollectives, MaximumKeepsNan) {
  for (int where = 0; where < size; ++where)
    for (const std::int64_t count : {3, 50'000}) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      const Tensor x = ranks.tensor(std::vector<float>(static_cast<std::size_t>(count), rank == where ? nan : 1.f));
      comm.all_reduce(x, Reduce::max, stream, "nan");
      for (const float value : values_of<float>(x)) ASSERT_TRUE(std::isnan(value)) << where;
    }
}

TEST_F(FloatCollectives, SteadyStateTakesNoNewMemory) {
  const Tensor x = ranks.tensor(random_values(rank, 300'000));
  comm.all_reduce(x, Reduce::sum, stream, "warm");
  const std::int64_t maps = ranks.device.allocator().maps();
  for (int i = 0; i < 5; ++i) comm.all_reduce(x, Reduce::max, stream, "steady");
  EXPECT_EQ(ranks.device.allocator().maps(), maps);
  EXPECT_EQ(ranks.device.allocator().in_use().bytes[static_cast<int>(MemoryKind::workspace)], 0);
}

TEST_F(FloatCollectives, CallsAreInTheRing) {
  const Tensor x = ranks.tensor(random_values(rank, 10));
  comm.all_reduce(x, Reduce::sum, stream, "blocks.7.attention.out");
  ranks.mesh.world->barrier(stream, "end of step");
  comm.all_reduce(x, Reduce::max, stream, "a label that is much longer than the sixty-two characters that a slot has");
  const std::vector<Call> calls = ranks.ring.calls();
  if (size == 1) {
    EXPECT_TRUE(calls.empty());
    return;
  }
  ASSERT_EQ(calls.size(), 3u);
  EXPECT_STREQ(calls[0].verb, "all_reduce");
  EXPECT_STREQ(calls[0].axis, "tensor");
  EXPECT_STREQ(calls[0].label, "blocks.7.attention.out");
  EXPECT_EQ(calls[0].bytes, 40u);
  EXPECT_LE(calls[0].started, calls[0].ended);
  EXPECT_STREQ(calls[1].axis, "world");
  EXPECT_EQ(calls[1].number, 1u);
  EXPECT_EQ(calls[2].number, 2u);
  EXPECT_EQ(calls[2].sequence, 3u);
  EXPECT_EQ(calls[2].ranks, size);
  EXPECT_STREQ(calls[2].label, "a label that is much longer than the sixty-two characters that");
  EXPECT_FALSE(ranks.ring.in_call());
}

// The words of the error that `call` throws, or "nothing was thrown".
template <class Function>
std::string error_of(Function&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_F(FloatCollectives, WrongArgumentsAreRefusedBeforeAnythingIsSent) {
  const Tensor five = ranks.empty({5}, DType::f32), wide = ranks.empty({4, 6}, DType::f32);
  const Tensor doubles = ranks.empty({5 * size}, DType::f64), bytes = ranks.empty({5}, DType::u8);
  const auto refused = [&](const char* part, const std::function<void()>& call) {
    const std::string words = error_of(call);
    EXPECT_NE(words.find(part), std::string::npos) << words;
    EXPECT_NE(words.find("of tensor (here)"), std::string::npos) << words;
  };
  refused("not contiguous: f32 [4, 3] with rows 6 elements apart",
          [&] { comm.all_reduce(wide.slice_columns(0, 3), Reduce::sum, stream, "here"); });
  refused("in is f32, out is f64", [&] { comm.all_gather(five, doubles, stream, "here"); });
  refused("out [4, 6] has 24 elements, but", [&] { comm.all_gather(five, wide, stream, "here"); });
  refused("in [4, 6] has 24 elements, but", [&] { comm.reduce_scatter(wide, five, Reduce::sum, stream, "here"); });
  refused("have 24 and 5 elements", [&] { comm.all_to_all(wide, five, stream, "here"); });
  refused("in and out overlap", [&] { comm.all_to_all(doubles.reshape({size, 5}), doubles, stream, "here"); });
  refused("root 9 is not one of the ranks 0 to", [&] { comm.broadcast(five, 9, stream, "here"); });
  refused("receiver -1 is not one of", [&] { comm.exchange({{five, -1}}, {}, stream, "here"); });
  refused("empty handle", [&] { comm.all_reduce(Tensor(), Reduce::sum, stream, "here"); });
  refused("u8 can only be reduced by max", [&] { comm.all_reduce(bytes, Reduce::sum, stream, "here"); });
  const Tensor whole = ranks.empty({size, 4}, DType::f32);
  refused("1 messages to itself, but 0", [&] { comm.exchange({{five, rank}}, {}, stream, "here"); });
  refused("message 0 to itself has 20 bytes, but 96", [&] {
    comm.exchange({{five, rank}}, {{wide, rank}}, stream, "here");
  });
  if (size > 1)
    refused("is not this rank's block of it", [&] {
      comm.all_gather(whole.slice_rows((rank + 1) % size, (rank + 1) % size + 1), whole, stream, "here");
    });
  EXPECT_TRUE(ranks.ring.calls().empty());
}

TEST_F(FloatCollectives, AMessageThatIsTooShortIsAFailure) {
  if (size == 1) GTEST_SKIP() << "one rank sends nothing, and messages to itself are compared before";
  const Tensor two = ranks.empty({2}, DType::f32), eight = ranks.empty({8}, DType::f32);
  const int next = (rank + 1) % size, previous = (rank - 1 + size) % size;
  const std::string words = error_of([&] {
    comm.exchange({{two, next}}, {{eight, previous}}, stream, "stage 1 output");
  });
  EXPECT_NE(words.find("exchange of tensor (stage 1 output), call #1, failed: 8 bytes came from rank " +
                       std::to_string(previous) + " of the axis, but 32 were expected"),
            std::string::npos)
      << words;
  EXPECT_TRUE(ranks.ring.in_call());  // and the ring says where it stopped
}

// An error that MPI itself finds: a rank that is not in the communicator.
TEST_F(FloatCollectives, FailuresOfMpiAreInItsWords) {
  MPI_Comm comm_of_one = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_SELF, &comm_of_one);
  MpiCommunicator wrong(comm_of_one, {.axis = "data", .size = 2}, ranks.device, ranks.ring);
  const Tensor x = ranks.empty({8}, DType::f32);
  const std::string words = error_of([&] { wrong.exchange({{x, 1}}, {}, stream, "gradients"); });
  EXPECT_NE(words.find("exchange of data (gradients), call #1, failed: MPI_Isend: MPI_ERR_RANK: invalid rank"),
            std::string::npos)
      << words;
}

}  // namespace
}  // namespace choir::tests
