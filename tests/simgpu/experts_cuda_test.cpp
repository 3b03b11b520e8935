// Routing on the GPU against the CPU: the same choices and slots, and sums within rounding.
#include "kernels/experts.h"
#include "tests/simgpu/agreement.h"

namespace choir::simgpu::tests {
namespace {

using kernels::ExpertScore;

struct Case {
  std::int64_t experts, chosen, capacity, sequences;
  kernels::Run first, second;
};
const Case cases[] = {{1, 1, 3, 2, {0, 5}, {0, 0}},
                      {4, 2, 3, 3, {0, 7}, {0, 0}},
                      {5, 5, 20, 2, {2, 9}, {12, 20}},
                      {40, 3, 2, 2, {0, 35}, {40, 75}},
                      {70, 32, 9, 1, {0, 40}, {0, 0}}};

struct ExpertsCuda : CudaTest {};

/// Everything of one layer, on the CPU; and what the GPU computes from the same inputs.
void routing_agrees(kernels::Cuda cuda, const Case& c, ExpertScore score, bool with_bias) {
  const kernels::RowMap map{0, c.sequences, 80, {c.first, c.second}};
  const std::int64_t rows = c.sequences * map.positions(), choices_count = rows * c.chosen;
  std::vector<float> logits = random_values<float>(rows * c.experts, 1, 2);
  for (float& x : logits) x = std::round(x * 4) / 4;  // many equal ones
  const std::vector<float> bias = random_values<float>(c.experts, 2);
  const DeviceArray<float> device_logits(logits), device_bias(bias), device_weights(choices_count);
  const DeviceArray<std::int32_t> device_choices(choices_count);
  std::vector<std::int32_t> choices(choices_count);
  std::vector<float> weights(choices_count);
  // With a bias the keys are rounded sums of exponentials: the choice of the CPU is given.
  if (with_bias)
    route(Cpu{}, kernels::Route<float>{logits.data(), bias.data(), nullptr, choices.data(), weights.data(), rows,
                                       c.experts, c.chosen, score});
  const DeviceArray<std::int32_t> given(choices);
  if (!with_bias)
    route(Cpu{}, kernels::Route<float>{logits.data(), nullptr, nullptr, choices.data(), weights.data(), rows, c.experts,
                                       c.chosen, score});
  route(cuda, kernels::Route<float>{device_logits.data(), with_bias ? device_bias.data() : nullptr,
                                    with_bias ? given.data() : nullptr, device_choices.data(), device_weights.data(),
                                    rows, c.experts, c.chosen, score});
  expect_equal(device_choices.host(), choices, "choices");
  const std::vector<double> ones(weights.size(), 1);
  expect_agreement(device_weights.host(), weights, ones, 60, "weights");

  std::vector<std::int32_t> counts(c.sequences * 2 * c.experts);
  const DeviceArray<std::int32_t> device_counts(counts);
  count_choices(Cpu{}, kernels::CountChoices{choices.data(), counts.data(), c.experts, c.chosen, map});
  count_choices(cuda, kernels::CountChoices{device_choices.data(), device_counts.data(), c.experts, c.chosen, map});
  expect_equal(device_counts.host(), counts, "counts");
  std::vector<float> imbalance(c.experts, 1);
  const DeviceArray<float> device_imbalance(imbalance);
  add_imbalance(Cpu{},
                kernels::AddImbalance<float>{counts.data(), imbalance.data(), c.sequences, c.experts, choices_count});
  add_imbalance(cuda, kernels::AddImbalance<float>{device_counts.data(), device_imbalance.data(), c.sequences,
                                                   c.experts, choices_count});
  expect_equal(device_imbalance.host(), imbalance, "imbalance");

  const kernels::ExpertPlaces places{c.experts, 3};
  const std::int64_t per_sequence = std::min(c.capacity, map.positions());
  const std::int64_t num_slots = places.count() * c.sequences * per_sequence;
  std::vector<std::int32_t> slots(choices_count), rows_of_slots(num_slots), cached(c.experts, 1);
  const bool in_generation = c.sequences == 1;
  const DeviceArray<std::int32_t> device_slots(choices_count), device_rows_of_slots(num_slots), device_cached(cached);
  const auto assign = [&](auto device, const std::int32_t* chosen, const std::int32_t* counted, std::int32_t* cache,
                          std::int32_t* to, std::int32_t* rows_of) {
    assign_slots(device, kernels::AssignSlots{chosen, counted, in_generation ? cache : nullptr, to, rows_of, c.chosen,
                                              c.capacity, per_sequence, places, map});
  };
  assign(Cpu{}, choices.data(), counts.data(), cached.data(), slots.data(), rows_of_slots.data());
  assign(cuda, device_choices.data(), device_counts.data(), device_cached.data(), device_slots.data(),
         device_rows_of_slots.data());
  expect_equal(device_slots.host(), slots, "slots");
  expect_equal(device_rows_of_slots.host(), rows_of_slots, "rows of slots");
  expect_equal(device_cached.host(), cached, "cached counts");

  const std::vector<float> dweights = random_values<float>(choices_count, 3);
  const DeviceArray<float> device_dweights(dweights);
  for (const bool balanced : {false, true}) {
    std::vector<float> dlogits(logits.size()), terms(rows);
    const DeviceArray<float> device_dlogits(logits.size()), device_terms(rows);
    std::vector<double> sums = {1, 2, 3};
    const DeviceArray<double> device_sums(sums);
    const kernels::Balance balance{balanced ? counts.data() : nullptr, 1, 0.3};
    const kernels::Balance device_balance{balanced ? device_counts.data() : nullptr, 1, 0.3};
    route_backward(Cpu{},
                   kernels::RouteBackward<float>{logits.data(), choices.data(), weights.data(), dweights.data(),
                                                 dlogits.data(), rows, c.experts, c.chosen, score, map, balance});
    route_backward(cuda, kernels::RouteBackward<float>{
                             device_logits.data(), device_choices.data(), device_weights.data(), device_dweights.data(),
                             device_dlogits.data(), rows, c.experts, c.chosen, score, map, device_balance});
    const std::vector<double> magnitude(dlogits.size(), 4 + 80 * 0.3);  // weights, and counts up to a whole sequence
    expect_agreement(device_dlogits.host(), dlogits, magnitude, roundings_of_sum(c.experts) + 60, "dlogits");
    add_expert_sums(Cpu{}, kernels::ExpertSums<float>{logits.data(), slots.data(), terms.data(), sums.data(), rows,
                                                      c.experts, c.chosen, score, map, balance});
    add_expert_sums(
        cuda, kernels::ExpertSums<float>{device_logits.data(), device_slots.data(), device_terms.data(),
                                         device_sums.data(), rows, c.experts, c.chosen, score, map, device_balance});
    const std::vector<double> of_cuda = device_sums.host();
    EXPECT_EQ(of_cuda[0], sums[0]);
    EXPECT_EQ(of_cuda[1], sums[1]);
    EXPECT_NEAR(of_cuda[2], sums[2], 1e-5 * sums[2]);
  }
}

TEST_P(ExpertsCuda, RoutingAgreesWithTheCpu) {
  for (const Case& c : cases)
    for (const ExpertScore score : {ExpertScore::softmax, ExpertScore::sigmoid})
      for (const bool with_bias : {false, true}) {
        SCOPED_TRACE(std::to_string(c.experts) + " experts, score " + std::to_string(static_cast<int>(score)));
        routing_agrees(cuda(), c, score, with_bias);
        if (HasFatalFailure()) return;
      }
}

template <class T>
void slots_agree(kernels::Cuda cuda, std::int64_t rows, std::int64_t width, std::int64_t chosen, std::int64_t offset) {
  const std::int64_t slots = 2 * rows * chosen;
  std::vector<std::int32_t> of_rows(rows * chosen), rows_of_slots(slots, -1);
  for (std::int64_t i = 0; i < rows * chosen; ++i) {
    of_rows[i] = i % 5 == 3 ? -1 : static_cast<std::int32_t>((i * 2 + 1) % slots);
    if (of_rows[i] >= 0) rows_of_slots[of_rows[i]] = static_cast<std::int32_t>(i);
  }
  const std::vector<T> x = random_values<T>(rows * width, 1), z = random_values<T>(slots * width, 2);
  const std::vector<float> weights = random_values<float>(rows * chosen, 3);
  const DeviceArray<std::int32_t> device_of_rows(of_rows), device_rows_of_slots(rows_of_slots);
  const DeviceArray<T> device_x(x, offset), device_z(z, offset), device_y(slots * width, offset),
      device_sum(rows * width, offset);
  const DeviceArray<float> device_weights(weights), device_dweights(rows * chosen);
  for (const bool weighted : {false, true}) {
    const float* by = weighted ? weights.data() : nullptr;
    const float* device_by = weighted ? device_weights.data() : nullptr;
    std::vector<T> y(slots * width), sum(rows * width);
    gather_slots(Cpu{}, kernels::GatherSlots<T>{x.data(), by, rows_of_slots.data(), y.data(), slots, width, chosen});
    gather_slots(cuda, kernels::GatherSlots<T>{device_x.data(), device_by, device_rows_of_slots.data(), device_y.data(),
                                               slots, width, chosen});
    expect_equal(device_y.host(), y, "y");
    combine_slots(Cpu{}, kernels::CombineSlots<T>{z.data(), by, of_rows.data(), sum.data(), rows, width, chosen});
    combine_slots(cuda, kernels::CombineSlots<T>{device_z.data(), device_by, device_of_rows.data(), device_sum.data(),
                                                 rows, width, chosen});
    const std::vector<double> magnitude(sum.size(), 10.0 * static_cast<double>(chosen));
    expect_agreement(device_sum.host(), sum, magnitude, roundings_of_sum(chosen), "sum");
  }
  std::vector<float> dweights(rows * chosen);
  combine_weight_gradient(Cpu{}, kernels::CombineWeightGradient<T>{x.data(), z.data(), of_rows.data(), dweights.data(),
                                                                   rows, width, chosen});
  combine_weight_gradient(cuda,
                          kernels::CombineWeightGradient<T>{device_x.data(), device_z.data(), device_of_rows.data(),
                                                            device_dweights.data(), rows, width, chosen});
  const std::vector<double> magnitude(dweights.size(), static_cast<double>(width));
  expect_agreement(device_dweights.host(), dweights, magnitude, roundings_of_sum(width), "dweights");
}

TEST_P(ExpertsCuda, SlotsAgreeWithTheCpu) {
  const std::int64_t sizes[][3] = {{1, 1, 1}, {5, 17, 2}, {20, 64, 3}, {7, 1032, 2}};
  for (const auto& [rows, width, chosen] : sizes) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(width));
    for_types_and_offsets([&, rows = rows, width = width, chosen = chosen]<class T>(std::int64_t offset) {
      slots_agree<T>(cuda(), rows, width, chosen, offset);
    });
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Generations, ExpertsCuda, generations);

}  // namespace
}  // namespace choir::simgpu::tests
