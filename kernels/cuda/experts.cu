// The routing of a layer of experts on the GPU: a warp for each row, or for each expert and sequence. No atomics: each
// sum has one order.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/experts.h"

namespace choir::kernels {
namespace {

constexpr unsigned all_lanes = 0xffffffffu;

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline std::int64_t warp_of_grid() { return cuda::thread_of_grid() / 32; }
__device__ inline std::int64_t warps_of_grid() { return cuda::threads_of_grid() / 32; }

int blocks_for_warps(Cuda cuda, std::int64_t warps) {
  constexpr int warps_per_block = cuda::threads_per_block / 32;
  return cuda::blocks_for(cuda, (warps + warps_per_block - 1) / warps_per_block);
}

__device__ inline float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(all_lanes, value, distance);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int distance = 16; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(all_lanes, value, distance));
  return value;
}

/// The scores of a row, for all lanes of its warp.
struct Scores {
  const float* logits;
  std::int64_t experts;
  bool softmax;
  float largest, sum;

  __device__ Scores(const float* of_row, std::int64_t count, ExpertScore score)
      : logits(of_row), experts(count), softmax(score == ExpertScore::softmax) {
    float most = logits[0], total = 0;
    for (std::int64_t e = lane_of_warp(); e < experts; e += 32) most = fmaxf(most, logits[e]);
    largest = warp_max(most);
    for (std::int64_t e = lane_of_warp(); e < experts; e += 32) total += score_of(e);
    sum = warp_sum(total);
  }
  __device__ float score_of(std::int64_t e) const {
    return softmax ? expf(logits[e] - largest) : 1.0f / (1.0f + expf(-logits[e]));
  }
  __device__ float share(std::int64_t e) const { return score_of(e) / sum; }
  __device__ float slope(std::int64_t e) const { return softmax ? 1.0f : 1.0f - score_of(e); }
};

__global__ void route_kernel(Route<float> args) {
  const int lane = lane_of_warp();
  for (std::int64_t row = warp_of_grid(); row < args.rows; row += warps_of_grid()) {
    const float* logits = args.logits + row * args.experts;
    const Scores scores(logits, args.experts, args.score);
    float before = 0;
    int last = -1, mine = 0;  // the choice of j = lane
    for (int j = 0; j < args.chosen; ++j) {
      int best = -1;
      float best_key = 0;
      for (int e = lane; e < args.experts; e += 32) {
        float key = logits[e];
        if (args.bias != nullptr) key = (scores.softmax ? scores.share(e) : scores.score_of(e)) + args.bias[e];
        const bool later = j == 0 || key < before || (key == before && e > last);
        if (!later || !(best < 0 || key > best_key) || isnan(key)) continue;
        best = e;
        best_key = key;
      }
      for (int distance = 16; distance > 0; distance /= 2) {
        const int other = __shfl_xor_sync(all_lanes, best, distance);
        const float other_key = __shfl_xor_sync(all_lanes, best_key, distance);
        const bool better = best < 0 || other_key > best_key || (other_key == best_key && other < best);
        if (other < 0 || !better) continue;
        best = other;
        best_key = other_key;
      }
      last = best < 0 ? j : best;
      before = best_key;
      if (lane == j) mine = last;
    }
    const bool has_choice = lane < args.chosen;
    if (has_choice && args.given != nullptr) mine = args.given[row * args.chosen + lane];
    const float logit = logits[mine];
    const float largest = warp_max(has_choice ? logit : -INFINITY);
    float weight = 0;
    if (has_choice) weight = scores.softmax ? expf(logit - largest) : 1.0f / (1.0f + expf(-logit));
    const float sum = warp_sum(weight);
    if (!has_choice) continue;
    args.choices[row * args.chosen + lane] = mine;
    args.weights[row * args.chosen + lane] = weight / sum;
  }
}

/// How often sequence `s` chose expert e, on all context ranks.
__device__ inline float chosen_by_sequence(const Balance& balance, std::int64_t sequences, std::int64_t experts,
                                           std::int64_t s, std::int64_t e) {
  int sum = 0;
  for (std::int64_t rank = 0; rank < balance.ranks; ++rank) {
    const std::int32_t* counts = balance.counts + (rank * sequences + s) * 2 * experts + e;
    sum += counts[0] + counts[experts];
  }
  return static_cast<float>(sum);
}

__device__ inline float balance_of_row(const Scores& scores, const Balance& balance, std::int64_t sequences,
                                       std::int64_t s) {
  float sum = 0;
  for (std::int64_t e = lane_of_warp(); e < scores.experts; e += 32)
    sum += chosen_by_sequence(balance, sequences, scores.experts, s, e) * scores.share(e);
  return warp_sum(sum);
}

__global__ void route_backward_kernel(RouteBackward<float> args) {
  const int lane = lane_of_warp();
  for (std::int64_t row = warp_of_grid(); row < args.rows; row += warps_of_grid()) {
    const Scores scores(args.logits + row * args.experts, args.experts, args.score);
    const std::int64_t s = args.map.place(row).sequence, sequences = args.map.sequences;
    const bool balanced = args.balance.counts != nullptr, has_choice = lane < args.chosen;
    const float balance_mean = balanced ? balance_of_row(scores, args.balance, sequences, s) : 0;
    int choice = -1;
    float weight = 0, dweight = 0;
    if (has_choice) {
      choice = args.choices[row * args.chosen + lane];
      weight = args.weights[row * args.chosen + lane];
      dweight = args.dweights[row * args.chosen + lane];
    }
    const float mean = warp_sum(weight * dweight);
    // All lanes take part in each exchange, also those without an expert.
    for (std::int64_t first = 0; first < args.experts; first += 32) {
      const std::int64_t e = first + lane;
      float sum = 0;
      if (balanced && e < args.experts)
        sum = static_cast<float>(args.balance.factor) * scores.share(e) * scores.slope(e) *
              (chosen_by_sequence(args.balance, sequences, args.experts, s, e) - balance_mean);
      for (int j = 0; j < args.chosen; ++j) {
        const int of_j = __shfl_sync(all_lanes, choice, j);
        const float weight_of_j = __shfl_sync(all_lanes, weight, j), dweight_of_j = __shfl_sync(all_lanes, dweight, j);
        if (of_j == e) sum += weight_of_j * scores.slope(e) * (dweight_of_j - mean);
      }
      if (e < args.experts) args.dlogits[row * args.experts + e] = sum;
    }
  }
}

__global__ void balance_terms_kernel(ExpertSums<float> args) {
  for (std::int64_t row = warp_of_grid(); row < args.rows; row += warps_of_grid()) {
    const Scores scores(args.logits + row * args.experts, args.experts, args.score);
    const float term = balance_of_row(scores, args.balance, args.map.sequences, args.map.place(row).sequence);
    if (lane_of_warp() == 0) args.terms[row] = term;
  }
}

/// One block.
__global__ void __launch_bounds__(cuda::threads_per_block) expert_sums_kernel(ExpertSums<float> args) {
  double values[2] = {0, 0};  // dropped, terms
  for (std::int64_t i = threadIdx.x; i < args.rows * args.chosen; i += blockDim.x)
    if (args.slots[i] < 0) values[0] += 1;
  if (args.balance.counts != nullptr)
    for (std::int64_t row = threadIdx.x; row < args.rows; row += blockDim.x) values[1] += args.terms[row];
  cuda::block_reduce(values, cuda::Plus{});
  if (threadIdx.x > 0) return;
  args.sums[0] += static_cast<double>(args.rows * args.chosen);
  args.sums[1] += values[0];
  args.sums[2] += args.balance.factor * values[1];
}

/// The first of a row's choices that is e; -1: none.
__device__ inline int choice_of(const std::int32_t* choices, std::int64_t chosen, std::int64_t e) {
  int found = -1;
  for (int j = static_cast<int>(chosen) - 1; j >= 0; --j)
    if (choices[j] == e) found = j;
  return found;
}

struct RunOfSequence {
  std::int64_t first_row, count;
};
__device__ inline RunOfSequence run_of(const RowMap& map, int run, std::int64_t s) {
  const std::int64_t in_first = map.runs[0].count(), in_second = map.runs[1].count();
  const std::int64_t count = run == 0 ? in_first : in_second;
  return {(run == 0 ? 0 : map.sequences * in_first) + s * count, count};
}

/// A warp for each sequence and expert.
__global__ void count_choices_kernel(CountChoices args) {
  const std::int64_t items = args.map.sequences * args.experts;
  for (std::int64_t item = warp_of_grid(); item < items; item += warps_of_grid()) {
    const std::int64_t e = item % args.experts, s = item / args.experts;
    for (int run = 0; run < 2; ++run) {
      const RunOfSequence of_run = run_of(args.map, run, s);
      int count = 0;
      for (std::int64_t begin = 0; begin < of_run.count; begin += 32) {
        const std::int64_t i = begin + lane_of_warp();
        const bool chosen =
            i < of_run.count && choice_of(args.choices + (of_run.first_row + i) * args.chosen, args.chosen, e) >= 0;
        count += __popc(__ballot_sync(all_lanes, chosen));
      }
      if (lane_of_warp() == 0) args.counts[(s * 2 + run) * args.experts + e] = count;
    }
  }
}

/// A warp for each place and sequence: 32 rows at a time, in the order of positions.
__global__ void assign_slots_kernel(AssignSlots args) {
  const std::int64_t experts = args.places.experts, sequences = args.map.sequences;
  const std::int64_t items = args.places.count() * sequences;
  const int lane = lane_of_warp();
  for (std::int64_t item = warp_of_grid(); item < items; item += warps_of_grid()) {
    const std::int64_t s = item % sequences, e = args.places.expert(item / sequences);
    const std::int64_t first = item * args.per_sequence;
    std::int64_t used = 0;
    for (int run = 0; run < 2 && e >= 0; ++run) {
      const RunOfSequence of_run = run_of(args.map, run, s);
      std::int64_t earlier = args.cached != nullptr && run == 0 && args.map.runs[0].begin > 0 ? args.cached[e] : 0;
      for (std::int64_t rank = 0; rank < args.context_ranks; ++rank)
        for (int other = 0; other < 2; ++other)
          if (args.order(rank, other) < args.order(args.context_rank, run))
            earlier += args.counts[((rank * sequences + s) * 2 + other) * experts + e];
      for (std::int64_t begin = 0; begin < of_run.count; begin += 32) {
        const std::int64_t i = begin + lane, row = of_run.first_row + i;
        const std::int32_t* choices = args.choices + row * args.chosen;
        const int j = i < of_run.count ? choice_of(choices, args.chosen, e) : -1;
        const unsigned matches = __ballot_sync(all_lanes, j >= 0);
        const std::int64_t before = __popc(matches & ((1u << lane) - 1)), room = args.capacity - earlier;
        if (j >= 0) {
          const bool kept = before < room;
          args.slots[row * args.chosen + j] = kept ? static_cast<std::int32_t>(first + used + before) : -1;
          if (kept) args.rows_of_slots[first + used + before] = static_cast<std::int32_t>(row * args.chosen + j);
          for (int twice = j + 1; twice < args.chosen; ++twice)
            if (choices[twice] == e) args.slots[row * args.chosen + twice] = -1;
        }
        const std::int64_t found = __popc(matches);
        used += room <= 0 ? 0 : (found < room ? found : room);
        earlier += found;
      }
      if (args.cached != nullptr && run == 0 && lane == 0) args.cached[e] = static_cast<std::int32_t>(earlier);
    }
    for (std::int64_t i = used + lane; i < args.per_sequence; i += 32) args.rows_of_slots[first + i] = -1;
  }
}

/// A block for each slot.
template <class T, int N>
__global__ void gather_slots_kernel(GatherSlots<T> args) {
  for (std::int64_t i = blockIdx.x; i < args.slots; i += gridDim.x) {
    const std::int64_t from = args.rows_of_slots[i];
    const float weight = from >= 0 && args.weights != nullptr ? args.weights[from] : 1.0f;
    const T* x = args.x + (from < 0 ? 0 : from / args.chosen) * args.width;
    for (std::int64_t d = std::int64_t{threadIdx.x} * N; d < args.width; d += std::int64_t{blockDim.x} * N) {
      cuda::Pack<N> value{};
      if (from >= 0) value = cuda::load<N>(x + d);
#pragma unroll
      for (int k = 0; k < N; ++k) value.value[k] *= weight;
      cuda::store(value, args.y + i * args.width + d);
    }
  }
}

/// A block for each row.
template <class T, int N>
__global__ void combine_slots_kernel(CombineSlots<T> args) {
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const std::int32_t* slots = args.slots + row * args.chosen;
    for (std::int64_t d = std::int64_t{threadIdx.x} * N; d < args.width; d += std::int64_t{blockDim.x} * N) {
      cuda::Pack<N> sum{};
      for (int j = 0; j < args.chosen; ++j) {
        const std::int64_t slot = slots[j];
        if (slot < 0) continue;
        const float weight = args.weights != nullptr ? args.weights[row * args.chosen + j] : 1.0f;
        const cuda::Pack<N> term = cuda::load<N>(args.x + slot * args.width + d);
#pragma unroll
        for (int k = 0; k < N; ++k) sum.value[k] += weight * term.value[k];
      }
      cuda::store(sum, args.y + row * args.width + d);
    }
  }
}

/// A warp for each choice.
template <class T, int N>
__global__ void combine_weight_gradient_kernel(CombineWeightGradient<T> args) {
  for (std::int64_t item = warp_of_grid(); item < args.rows * args.chosen; item += warps_of_grid()) {
    const std::int64_t slot = args.slots[item];
    float sum = 0;
    if (slot >= 0) {
      const T *dy = args.dy + item / args.chosen * args.width, *x = args.x + slot * args.width;
      for (std::int64_t d = std::int64_t{lane_of_warp()} * N; d < args.width; d += 32 * N) {
        const cuda::Pack<N> a = cuda::load<N>(dy + d), b = cuda::load<N>(x + d);
#pragma unroll
        for (int k = 0; k < N; ++k) sum += a.value[k] * b.value[k];
      }
    }
    sum = warp_sum(sum);
    if (lane_of_warp() == 0) args.dweights[item] = sum;
  }
}

/// A thread for each expert.
__global__ void add_imbalance_kernel(AddImbalance<float> args) {
  for (std::int64_t e = cuda::thread_of_grid(); e < args.experts; e += cuda::threads_of_grid()) {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < args.sequences * 2; ++i) count += args.counts[i * args.experts + e];
    args.gradient[e] += static_cast<float>(args.experts * count - args.choices);
  }
}

int blocks_for_rows(std::int64_t rows) { return static_cast<int>(std::clamp<std::int64_t>(rows, 1, 0x7fffffff)); }

}  // namespace

template <>
void route(Cuda cuda, const Route<float>& args) {
  route_kernel<<<blocks_for_warps(cuda, args.rows), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("route");
}

template <>
void route_backward(Cuda cuda, const RouteBackward<float>& args) {
  route_backward_kernel<<<blocks_for_warps(cuda, args.rows), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("route_backward");
}

template <>
void add_expert_sums(Cuda cuda, const ExpertSums<float>& args) {
  if (args.balance.counts != nullptr) {
    balance_terms_kernel<<<blocks_for_warps(cuda, args.rows), cuda::threads_per_block, 0, cuda.stream>>>(args);
    cuda::check_launch("add_expert_sums");
  }
  expert_sums_kernel<<<1, cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("add_expert_sums");
}

void count_choices(Cuda cuda, const CountChoices& args) {
  const std::int64_t warps = args.map.sequences * args.experts;
  count_choices_kernel<<<blocks_for_warps(cuda, warps), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("count_choices");
}

template <>
void add_imbalance(Cuda cuda, const AddImbalance<float>& args) {
  add_imbalance_kernel<<<cuda::blocks_for(cuda, args.experts), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("add_imbalance");
}

void assign_slots(Cuda cuda, const AssignSlots& args) {
  const std::int64_t warps = args.places.count() * args.map.sequences;
  assign_slots_kernel<<<blocks_for_warps(cuda, warps), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("assign_slots");
}

template <class T>
void gather_slots(Cuda cuda, const GatherSlots<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.x, args.y}, [&]<int N>() {
    gather_slots_kernel<T, N>
        <<<blocks_for_rows(args.slots), cuda::threads_for_row(args.width / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("gather_slots");
}

template <class T>
void combine_slots(Cuda cuda, const CombineSlots<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.x, args.y}, [&]<int N>() {
    combine_slots_kernel<T, N>
        <<<blocks_for_rows(args.rows), cuda::threads_for_row(args.width / N), 0, cuda.stream>>>(args);
  });
  cuda::check_launch("combine_slots");
}

template <class T>
void combine_weight_gradient(Cuda cuda, const CombineWeightGradient<T>& args) {
  cuda::with_pack_size<T>(args.width, {args.dy, args.x}, [&]<int N>() {
    combine_weight_gradient_kernel<T, N>
        <<<blocks_for_warps(cuda, args.rows * args.chosen), cuda::threads_per_block, 0, cuda.stream>>>(args);
  });
  cuda::check_launch("combine_weight_gradient");
}

template void gather_slots(Cuda, const GatherSlots<float>&);
template void gather_slots(Cuda, const GatherSlots<bf16>&);
template void combine_slots(Cuda, const CombineSlots<float>&);
template void combine_slots(Cuda, const CombineSlots<bf16>&);
template void combine_weight_gradient(Cuda, const CombineWeightGradient<float>&);
template void combine_weight_gradient(Cuda, const CombineWeightGradient<bf16>&);

}  // namespace choir::kernels
