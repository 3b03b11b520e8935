// The routing of heads on the GPU: a block for each sequence and head.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/head_routing.h"

namespace choir::kernels {
namespace {

/// The first of `count` ranges, ascending, of which `passes` is true; `count`: none.
template <class Passes>
__device__ std::int64_t first_range(const DocumentRange* ranges, std::int64_t count, const Passes& passes) {
  std::int64_t begin = 0, end = count;
  while (begin < end) {
    const std::int64_t middle = (begin + end) / 2;
    if (passes(ranges[middle])) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

__global__ void __launch_bounds__(cuda::threads_per_block) head_rows_kernel(HeadRows<float> args) {
  const VisiblePairs<std::int64_t> pairs(args.band, args.map.last_position() + 1, args.keys);
  const std::int64_t items = args.map.sequences * args.heads, step = blockDim.x, thread = threadIdx.x;
  const auto shift = static_cast<std::int32_t>(args.per_sequence);
  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const std::int64_t sequence = item / args.heads, head = item - sequence * args.heads;
    for (std::int64_t i = thread; i < args.map.positions(); i += step) {
      const std::int64_t at = args.map.row_at(sequence, i) * args.heads + head;
      args.gates[at] = 0;
      args.slots[at] = -1;
    }
    const std::int64_t routed = args.first_head + head - args.always;
    const std::int32_t* of_head =
        args.rows_of_routed + (routed * args.map.sequences + sequence) * args.routed_per_sequence;
    DocumentRange* of_slots = args.ranges + item * (args.per_sequence + args.keys);
    const std::int64_t most = routed < 0 ? args.map.positions() : args.routed_per_sequence;
    __syncthreads();  // the slots of rows are -1 before some get one
    std::int64_t mine = 0;
    for (std::int64_t i = thread; i < args.per_sequence; i += step) {
      const std::int64_t slot = (sequence * args.per_sequence + i) * args.heads + head;
      const std::int64_t choice = routed < 0 || i >= most ? -1 : of_head[i];
      const bool is_used = i < most && (routed < 0 || choice >= 0);
      if (!is_used) {
        args.rows_of_slots[slot] = -1;
        continue;
      }
      ++mine;
      const std::int64_t row = routed < 0 ? args.map.row_at(sequence, i) : choice / args.chosen;
      const std::int64_t at = row * args.heads + head;
      args.gates[at] = routed < 0 ? 1.0f : static_cast<float>(args.chosen) * args.weights[choice];
      args.slots[at] = static_cast<std::int32_t>(slot);
      args.rows_of_slots[slot] = static_cast<std::int32_t>(at);
      const auto keys = keys_at_position(pairs, args.documents, sequence, args.map.position(row));
      of_slots[i] = {shift + static_cast<std::int32_t>(keys.begin), shift + static_cast<std::int32_t>(keys.end)};
    }
    const std::int64_t used = cuda::block_sum(mine);  // they are the first ones
    const std::int32_t end = used > 0 ? of_slots[used - 1].end : shift;
    for (std::int64_t i = used + thread; i < args.per_sequence; i += step) of_slots[i] = {end, end};
    for (std::int64_t key = thread; key < args.keys; key += step) {
      const std::int64_t place = key + shift;
      const auto ends_after = [&](const DocumentRange& range) { return range.end > place; };
      const auto begins_after = [&](const DocumentRange& range) { return range.begin > place; };
      of_slots[args.per_sequence + key] = {static_cast<std::int32_t>(first_range(of_slots, used, ends_after)),
                                           static_cast<std::int32_t>(first_range(of_slots, used, begins_after))};
    }
  }
}

/// A thread for each choice.
__global__ void head_weight_gradient_kernel(HeadWeightGradient<float> args) {
  for (std::int64_t i = cuda::thread_of_grid(); i < args.rows * args.chosen; i += cuda::threads_of_grid()) {
    const std::int64_t head = args.always + args.choices[i] - args.first_head;
    const bool held = 0 <= head && head < args.heads;
    args.dweights[i] = held ? static_cast<float>(args.chosen) * args.dgates[i / args.chosen * args.heads + head] : 0.0f;
  }
}

/// A block for each head.
__global__ void __launch_bounds__(cuda::threads_per_block) head_counts_kernel(HeadCounts args) {
  for (std::int64_t head = blockIdx.x; head < args.heads; head += gridDim.x) {
    std::int64_t mine = 0;
    for (std::int64_t i = threadIdx.x; i < args.slots; i += blockDim.x)
      mine += args.rows_of_routed[head * args.slots + i] >= 0 ? 1 : 0;
    const std::int64_t used = cuda::block_sum(mine);
    if (threadIdx.x == 0) args.sums[head] += static_cast<double>(used);
  }
}

}  // namespace

template <>
void compute_head_rows(Cuda cuda, const HeadRows<float>& args) {
  const std::int64_t blocks = args.map.sequences * args.heads;
  if (blocks == 0) return;
  head_rows_kernel<<<cuda::blocks_for(cuda, blocks), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("head_rows");
}

template <>
void head_weight_gradient(Cuda cuda, const HeadWeightGradient<float>& args) {
  head_weight_gradient_kernel<<<cuda::blocks_for_elements<1>(cuda, args.rows * args.chosen), cuda::threads_per_block, 0,
                                cuda.stream>>>(args);
  cuda::check_launch("head_weight_gradient");
}

void add_head_counts(Cuda cuda, const HeadCounts& args) {
  head_counts_kernel<<<cuda::blocks_for(cuda, args.heads), cuda::threads_per_block, 0, cuda.stream>>>(args);
  cuda::check_launch("add_head_counts");
}

}  // namespace choir::kernels
