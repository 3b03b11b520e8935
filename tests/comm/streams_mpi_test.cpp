// Order on threaded streams: collectives on the communication stream see what the compute stream wrote before the call,
// and later work there sees what they left. Sleeps make a missing event show as a wrong number.
#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <thread>

#include "framework/comm/mpi_communicator.h"
#include "framework/core/error.h"
#include "tests/comm/ranks.h"

namespace choir::tests {
namespace {

void sleep_a_little() { std::this_thread::sleep_for(std::chrono::milliseconds(3)); }

class Streams : public ::testing::TestWithParam<StreamMode> {};
INSTANTIATE_TEST_SUITE_P(Modes, Streams, ::testing::Values(StreamMode::immediate, StreamMode::threaded),
                         [](const auto& test) {
                           return test.param == StreamMode::immediate ? "immediate" : "threaded";
                         });

TEST_P(Streams, WorkBeforeAndAfterIsOrdered) {
  Ranks ranks(GetParam());
  Communicator& comm = *ranks.mesh.tensor;
  Stream& compute = ranks.device.compute();
  const int size = comm.size();
  for (const std::int64_t count : {4, 200'000}) {
    const Tensor x = ranks.empty({count}, DType::i32);
    const auto for_all = [&](auto change) {
      compute.enqueue([x, change] {
        sleep_a_little();
        for (std::int64_t i = 0; i < x.count(); ++i) change(x.data<std::int32_t>()[i]);
      });
    };
    for_all([](std::int32_t& v) { v = 1; });
    comm.all_reduce(x, Reduce::sum, compute, "first");  // size
    for_all([rank = comm.rank()](std::int32_t& v) { v = v * 2 + rank; });
    comm.all_reduce(x, Reduce::sum, compute, "second");  // 2 size^2 + size (size - 1) / 2
    for_all([](std::int32_t& v) { v += 5; });
    ranks.device.synchronize();
    for (const std::int32_t value : values_of<std::int32_t>(x))
      ASSERT_EQ(value, 2 * size * size + size * (size - 1) / 2 + 5);
  }
}

// As data-parallel buckets do: the sum runs on the communication stream while compute goes on with other memory, and
// one event each way is all the order there is.
TEST_P(Streams, EventsAloneOrderTheCommunicationStream) {
  Ranks ranks(GetParam());
  Communicator& comm = *ranks.mesh.tensor;
  Stream &compute = ranks.device.compute(), &communicate = ranks.device.communicate();
  std::vector<Tensor> buckets;
  for (int b = 0; b < 4; ++b) {
    buckets.push_back(ranks.empty({1000}, DType::f32));
    compute.enqueue([x = buckets.back(), b] {
      sleep_a_little();
      std::fill_n(x.data<float>(), x.count(), static_cast<float>(b));
    });
    Event ready;
    ready.record(compute);
    ready.wait(communicate);
    comm.all_reduce(buckets.back(), Reduce::sum, communicate, "bucket");
  }
  Event reduced;
  reduced.record(communicate);
  reduced.wait(compute);
  for (const Tensor& bucket : buckets)
    compute.enqueue([bucket] {
      for (int i = 0; i < 1000; ++i) bucket.data<float>()[i] += 0.5f;
    });
  ranks.device.synchronize();
  for (int b = 0; b < 4; ++b)
    for (const float value : values_of<float>(buckets[static_cast<std::size_t>(b)]))
      ASSERT_EQ(value, static_cast<float>(b * comm.size()) + 0.5f);
}

TEST_P(Streams, TensorsMayBeDroppedBeforeTheWorkHasRun) {
  Ranks ranks(GetParam());
  Communicator& comm = *ranks.mesh.tensor;
  Stream& compute = ranks.device.compute();
  const Tensor out = ranks.empty({comm.size(), 500}, DType::i32);
  {
    const Tensor in = ranks.empty({500}, DType::i32);
    compute.enqueue([in, rank = comm.rank()] {
      sleep_a_little();
      std::fill_n(in.data<std::int32_t>(), in.count(), rank);
    });
    std::string label = "a label that dies";
    comm.all_gather(in, out, compute, label.c_str());
  }
  ranks.device.synchronize();
  for (std::int64_t i = 0; i < out.count(); ++i) ASSERT_EQ(out.data<std::int32_t>()[i], i / 500);
  if (comm.size() > 1) {
    EXPECT_STREQ(ranks.ring.calls().back().label, "a label that dies");
  }
}

/// Notes the threads that make its calls of MPI.
class NotingCommunicator : public MpiCommunicator {
 public:
  NotingCommunicator(MPI_Comm comm, const Group& group, Device& device, CallRing& ring,
                     std::set<std::thread::id>& threads)
      : MpiCommunicator(comm, group, device, ring), threads_(threads) {}

 protected:
  void do_all_reduce(const Tensor& tensor, Reduce op, const Tensor& workspace) override {
    threads_.insert(std::this_thread::get_id());
    MpiCommunicator::do_all_reduce(tensor, op, workspace);
  }
  void do_barrier() override {
    threads_.insert(std::this_thread::get_id());
    MpiCommunicator::do_barrier();
  }

 private:
  std::set<std::thread::id>& threads_;
};

TEST_P(Streams, AllMpiCallsComeFromOneThread) {
  Ranks ranks(GetParam());
  std::set<std::thread::id> threads;
  MPI_Comm all = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &all);
  NotingCommunicator comm(all, {.axis = "tensor", .size = world_size(), .rank = ranks.mesh.tensor->rank()},
                          ranks.device, ranks.ring, threads);
  std::thread::id of_stream;
  ranks.device.communicate().enqueue([&] { of_stream = std::this_thread::get_id(); });
  const Tensor x = ranks.tensor(std::vector<float>(10, 1.f));
  comm.all_reduce(x, Reduce::sum, ranks.device.compute(), "compute");
  comm.all_reduce(x, Reduce::sum, ranks.device.communicate(), "communicate");
  comm.barrier(ranks.device.compute(), "end");
  ranks.device.synchronize();
  EXPECT_EQ(of_stream == std::this_thread::get_id(), GetParam() == StreamMode::immediate);
  if (comm.size() > 1) {
    EXPECT_EQ(threads, std::set{of_stream});
  }
  const auto n = static_cast<float>(comm.size());
  EXPECT_EQ(x.data<float>()[0], n * n);
}

// The failure of a call comes out of the next synchronize() of its stream; wrong arguments at once.
TEST(ThreadedStreams, FailuresComeOutOfSynchronize) {
  Ranks ranks(StreamMode::threaded);
  Communicator& comm = *ranks.mesh.tensor;
  const Tensor two = ranks.empty({2}, DType::f32), eight = ranks.empty({8}, DType::f32);
  EXPECT_THROW(comm.broadcast(two, -1, ranks.device.compute(), "root"), Error);
  if (comm.size() == 1) GTEST_SKIP() << "one rank makes no call that could fail later";
  const int next = (comm.rank() + 1) % comm.size(), previous = (comm.rank() - 1 + comm.size()) % comm.size();
  comm.exchange({{two, next}}, {{eight, previous}}, ranks.device.compute(), "lengths");
  EXPECT_THROW(ranks.device.communicate().synchronize(), Error);
}

}  // namespace
}  // namespace choir::tests
