// The routing of heads on the GPU: the bits of the CPU.
#include "kernels/head_routing.h"
#include "tests/kernels/head_routing_case.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::tests::HeadRoutingCase;

struct HeadRoutingCuda : CudaTest {};

std::vector<std::int32_t> numbers_of(const std::vector<kernels::DocumentRange>& ranges) {
  std::vector<std::int32_t> numbers;
  for (const auto& [begin, end] : ranges) numbers.insert(numbers.end(), {begin, end});
  return numbers;
}

TEST_P(HeadRoutingCuda, AgreesWithTheCpu) {
  for (const HeadRoutingCase& c : kernels::tests::head_routing_cases) {
    SCOPED_TRACE(c.name);
    const kernels::tests::HeadChoices choices(c);
    const std::vector<kernels::DocumentRange> documents = kernels::tests::two_documents(c);
    const std::int64_t rows = c.map.sequences * c.map.positions(), slots = kernels::tests::slots_of(c);
    std::vector<float> gates(static_cast<std::size_t>(rows * c.held), 77);
    std::vector<std::int32_t> of_rows(gates.size(), 77),
        of_slots(static_cast<std::size_t>(c.map.sequences * slots * c.held), 77);
    std::vector<kernels::DocumentRange> ranges(
        static_cast<std::size_t>(c.map.sequences * c.held * (slots + c.map.length)), {77, 77});
    const DeviceArray<std::int32_t> device_routed(choices.rows_of_routed), device_of_rows(of_rows),
        device_of_slots(of_slots), device_ranges(numbers_of(ranges)),
        device_documents(documents.empty() ? std::vector<std::int32_t>(1) : numbers_of(documents));
    const DeviceArray<float> device_weights(choices.weights), device_gates(gates);

    kernels::HeadRows<float> args = kernels::tests::head_rows_of<float>(c);
    args.documents = {.separate = c.documents, .ranges = documents.data(), .length = c.map.length};
    args.weights = choices.weights.data();
    args.rows_of_routed = choices.rows_of_routed.data();
    args.gates = gates.data();
    args.slots = of_rows.data();
    args.rows_of_slots = of_slots.data();
    args.ranges = ranges.data();
    compute_head_rows(Cpu{}, args);
    args.documents.ranges = reinterpret_cast<const kernels::DocumentRange*>(device_documents.data());
    args.weights = device_weights.data();
    args.rows_of_routed = device_routed.data();
    args.gates = device_gates.data();
    args.slots = device_of_rows.data();
    args.rows_of_slots = device_of_slots.data();
    args.ranges = reinterpret_cast<kernels::DocumentRange*>(device_ranges.data());
    compute_head_rows(cuda(), args);
    expect_equal(device_gates.host(), gates, "gates");
    expect_equal(device_of_rows.host(), of_rows, "slots");
    expect_equal(device_of_slots.host(), of_slots, "rows of slots");
    expect_equal(device_ranges.host(), numbers_of(ranges), "ranges");

    const DeviceArray<std::int32_t> device_choices(choices.choices);
    std::vector<float> dweights(choices.choices.size(), 77);
    const DeviceArray<float> device_dweights(dweights);
    head_weight_gradient(
        Cpu{}, kernels::HeadWeightGradient<float>{choices.choices.data(), gates.data(), dweights.data(), rows, c.chosen,
                                                  c.always, c.first_head, c.held});
    head_weight_gradient(
        cuda(), kernels::HeadWeightGradient<float>{device_choices.data(), device_gates.data(), device_dweights.data(),
                                                   rows, c.chosen, c.always, c.first_head, c.held});
    expect_equal(device_dweights.host(), dweights, "gradients of weights");

    std::vector<double> sums(static_cast<std::size_t>(c.heads - c.always), 3);
    const DeviceArray<double> device_sums(sums);
    const std::int64_t of_head = std::ssize(choices.rows_of_routed) / std::ssize(sums);
    add_head_counts(Cpu{}, kernels::HeadCounts{choices.rows_of_routed.data(), sums.data(), std::ssize(sums), of_head});
    add_head_counts(cuda(), kernels::HeadCounts{device_routed.data(), device_sums.data(), std::ssize(sums), of_head});
    expect_equal(device_sums.host(), sums, "counts");
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, HeadRoutingCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
