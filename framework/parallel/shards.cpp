#include "framework/parallel/shards.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "framework/ops/elementwise.h"
#include "framework/parallel/tensor.h"
#include "kernels/elementwise.h"

namespace choir {

static Tensor view(const Weight& weight, const Tensor& flat, std::int64_t begin) {
  return flat.slice_columns(weight.offset - begin, weight.offset - begin + weight.rows * weight.width)
      .reshape({weight.rows, weight.width});
}

Shards::Shards(ParameterStore& store, const ShardOptions& options, Context& context)
    : store_(store), zero_(options.zero) {
  Runtime& runtime = context.runtime;
  const Mesh& mesh = context.mesh;
  const ShardPlace place{.ranks = mesh.gradient->size(),
                         .index = mesh.gradient->rank(),
                         .shard = mesh.shard->size(),
                         .expert = mesh.expert->size()};
  store.lay_out(bucket_alignment(place.ranks));
  buckets_ = make_buckets(store, zero_, place, options.bucket_elements);
  groups_.resize(static_cast<std::size_t>(store.groups()));
  for (Weight& weight : store.weights()) at_group(weight.group).weights.push_back(&weight);
  for (const Bucket& bucket : buckets_) ++at_group(bucket.group).buckets;
  for (std::size_t group = 1; group < groups_.size(); ++group)
    groups_[group].first_bucket = groups_[group - 1].first_bucket + groups_[group - 1].buckets;

  const DType type = accumulate_type(runtime.compute_type);
  Allocator& of_device = runtime.device.allocator();
  const auto type_of = [&](const Bucket& bucket) { return bucket.matrix ? runtime.compute_type : type; };
  const auto allocate = [&](Tensor Bucket::*tensor, Allocator& memory, DType of_type, MemoryKind kind,
                            const auto& is_for) {
    std::int64_t size = 0, at = 0;
    for (const Bucket& bucket : buckets_)
      if (is_for(bucket)) size += bucket.updated.count();
    if (size == 0) return Tensor{};
    const Tensor flat(memory, {size}, of_type, kind);
    for (Bucket& bucket : buckets_) {
      if (!is_for(bucket)) continue;
      bucket.*tensor = flat.slice_columns(at, at + bucket.updated.count());
      at += bucket.updated.count();
    }
    return flat;
  };

  if (zero_ < 3) {
    for (int group = 0; group < store.groups(); ++group) make_values(group, runtime);
    for (Bucket& bucket : buckets_) bucket.value = values_of(bucket, bucket.updated);
  } else {
    for (const bool matrix : {true, false})
      allocate(&Bucket::value, of_device, matrix ? runtime.compute_type : type, MemoryKind::parameters,
               [&](const Bucket& bucket) { return bucket.matrix == matrix; });
  }
  for (Bucket& bucket : buckets_)
    if (type_of(bucket) == type) bucket.master = bucket.value;
  if (options.training)
    allocate(&Bucket::master, options.masters ? *options.masters : of_device, type, MemoryKind::parameters,
             [&](const Bucket& bucket) { return type_of(bucket) != type; });

  if (options.training && zero_ < 2) {  // whole, so that the sums are where they are added up
    gradients_ = runtime.empty({store.size()}, type, MemoryKind::gradients);
    for (Bucket& bucket : buckets_)
      bucket.gradient = gradients_.slice_columns(bucket.updated.begin, bucket.updated.end);
    for (int group = 0; group < store.groups(); ++group)
      bind_gradient(group, gradients_.slice_columns(store.group_begin(group), store.group_end(group)));
  } else if (options.training) {
    gradients_ =
        allocate(&Bucket::gradient, of_device, type, MemoryKind::gradients, [](const Bucket&) { return true; });
  }
  if (gradients_) {  // below stage 2 products add to them, else sums of whole gradients are added
    zeroed_ = zero_ < 2 ? zeroed_in({0, store.size()}, runtime) : to_table({{0, gradients_.count()}}, runtime);
    for (int group = 0; zero_ >= 2 && group < store.groups(); ++group)
      at_group(group).zeroed = zeroed_in({store.group_begin(group), store.group_end(group)}, runtime);
  }
  for (std::size_t group = 0; group < groups_.size(); ++group)
    groups_[group].until_final = zero_ < 2 || (group < options.late.size() && options.late[group]);

  write_start_values(runtime);
  for (Group& group : groups_) group.whole = zero_ == 0;
}

/// The same bits on all devices and in all layouts: they are made on the host.
void Shards::write_start_values(Runtime& runtime) {
  if (runtime.device.counts_only()) return;
  std::vector<float> values;
  for (const Bucket& bucket : buckets_) {
    values.assign(static_cast<std::size_t>(bucket.updated.count()), 0.0f);  // padding stays zero
    for (const ParameterPart& part : parts_in(store_, {bucket.updated}, false))
      start_values(runtime, *part.parameter, part.begin, part.end,
                   values.data() + (part.flat_begin - bucket.updated.begin));
    write(runtime, values.data(), bucket.master ? bucket.master : bucket.value);
  }
  round(runtime);
}

void Shards::make_values(int group, Runtime& runtime) {
  Group& g = at_group(group);
  const FlatRange matrices = store_.matrices(group), vectors = store_.vectors(group);
  if (matrices.count() > 0)
    g.matrices = runtime.empty({matrices.count()}, runtime.compute_type, MemoryKind::parameters);
  if (vectors.count() > 0)
    g.vectors = runtime.empty({vectors.count()}, accumulate_type(runtime.compute_type), MemoryKind::parameters);
  for (Weight* weight : g.weights)
    weight->value =
        weight->matrix ? view(*weight, g.matrices, matrices.begin) : view(*weight, g.vectors, vectors.begin);
}

void Shards::bind_gradient(int group, const Tensor& gradient) {
  at_group(group).gradient = gradient;
  for (Weight* weight : at_group(group).weights)
    weight->gradient = gradient ? view(*weight, gradient, store_.group_begin(group)) : Tensor{};
}

Shards::Zeroed Shards::to_table(const std::vector<kernels::Range>& ranges, Runtime& runtime) {
  Zeroed zeroed{.ranges = ops::to_device(runtime, ranges, DType::u8, MemoryKind::optimizer)};
  for (const auto& [begin, end] : ranges) zeroed.elements += end - begin;
  return zeroed;
}

/// Of a buffer for `range` of the flat order: all but the weights that a product overwrites.
Shards::Zeroed Shards::zeroed_in(const FlatRange& range, Runtime& runtime) const {
  std::vector<FlatRange> overwritten;
  for (const Weight& weight : store_.weights())
    if (weight.overwritten && range.begin <= weight.offset && weight.offset < range.end)
      overwritten.push_back({weight.offset, weight.offset + weight.rows * weight.width});
  std::ranges::sort(overwritten, {}, &FlatRange::begin);
  overwritten.push_back({range.end, range.end});
  std::vector<kernels::Range> ranges;
  std::int64_t at = range.begin;
  for (const auto& [begin, end] : overwritten) {
    if (at < begin) ranges.push_back({at - range.begin, begin - range.begin});
    at = end;
  }
  return to_table(ranges, runtime);
}

void Shards::mark_as_new(const Group& group) {
  for (Weight* weight : group.weights) weight->is_new = weight->overwritten;
}

/// What nothing was added to: no micro-batch had rows for it.
void Shards::zero_what_is_new(const Group& group, Runtime& runtime) {
  for (Weight* weight : group.weights)
    if (std::exchange(weight->is_new, false)) ops::fill(runtime, weight->gradient, 0.0f);
}

/// The ranks of a replica that hold the same weights of the group.
Communicator& Shards::shard_of(int group, Context& context) const {
  return store_.replicas(group) == Replicas::expert ? *context.mesh.expert_shard : *context.mesh.shard;
}

/// `range` of the whole values of the bucket's group.
Tensor Shards::values_of(const Bucket& bucket, const FlatRange& range) const {
  const Group& g = groups_[static_cast<std::size_t>(bucket.group)];
  const std::int64_t begin = (bucket.matrix ? store_.matrices(bucket.group) : store_.vectors(bucket.group)).begin;
  return (bucket.matrix ? g.matrices : g.vectors).slice_columns(range.begin - begin, range.end - begin);
}

void Shards::prefetch(int group, Context& context) {
  Group& g = at_group(group);
  if (g.whole) return;
  g.whole = true;
  g.arriving = true;
  Communicator& axis = shard_of(group, context);
  if (zero_ == 3) make_values(group, context.runtime);
  Event ready;
  ready.record(context.runtime.device.compute());
  ready.wait(axis.stream());
  for (const Bucket& bucket : buckets_of(group))
    axis.all_gather(bucket.value, values_of(bucket, bucket.range), axis.stream(), "weights");
  g.arrived.record(axis.stream());
  g.call = axis.last_call();
}

void Shards::acquire(int group, Context& context) {
  prefetch(group, context);
  ++at_group(group).readers;
  arrive(group, context);
}

void Shards::arrive(int group, Context& context) {
  Group& g = at_group(group);
  if (!g.arriving) return;
  g.arriving = false;
  g.arrived.wait(context.runtime.device.compute());
  shard_of(group, context).waited_for(g.call);
}

void Shards::await_values(Context& context) {
  for (int group = 0; group < store_.groups(); ++group) arrive(group, context);
}

void Shards::release(int group) {
  Group& g = at_group(group);
  assert(g.readers > 0);
  if (--g.readers > 0 || zero_ < 3) return;
  g.whole = false;
  g.matrices = g.vectors = {};
  for (Weight* weight : g.weights) weight->value = {};
}

void Shards::begin_step(Context& context) {
  ops::zero_ranges(context.runtime, gradients_, zeroed_.ranges, zeroed_.elements);
  for (const Group& group : groups_)
    if (group.gradient) mark_as_new(group);
  for (std::size_t group = 0; group < groups_.size(); ++group)
    if (groups_[group].until_final) open(static_cast<int>(group), context);
}

void Shards::open(int group, Context& context) {
  Group& g = at_group(group);
  if (g.writers++ > 0 || g.gradient) return;
  const std::int64_t count = store_.group_end(group) - store_.group_begin(group);
  bind_gradient(group, context.runtime.empty({count}, gradients_.dtype(), MemoryKind::gradients));
  ops::zero_ranges(context.runtime, g.gradient, g.zeroed.ranges, g.zeroed.elements);
  mark_as_new(g);
}

void Shards::close(int group, Context& context) {
  Group& g = at_group(group);
  assert(g.writers > 0);
  if (--g.writers > 0) return;
  zero_what_is_new(g, context.runtime);
  sum_shared_gradients(store_, group, context);
  reduce(group, context);
}

void Shards::final(int group, Context& context) {
  if (at_group(group).until_final) close(group, context);
}

void Shards::reduce(int group, Context& context) {
  Communicator &shard = shard_of(group, context), &replica = *context.mesh.replica;
  Stream& communicate = shard.stream();
  const Tensor whole = at_group(group).gradient;
  const auto slice = [&](const FlatRange& range) {
    return whole.slice_columns(range.begin - store_.group_begin(group), range.end - store_.group_begin(group));
  };
  Event ready, done;
  ready.record(context.runtime.device.compute());
  ready.wait(communicate);
  for (const Bucket& bucket : buckets_of(group)) {
    if (zero_ == 0)
      shard.all_reduce(slice(bucket.range), Reduce::sum, communicate, "gradient bucket");
    else
      shard.reduce_scatter(slice(bucket.range), slice(bucket.updated), Reduce::sum, communicate, "gradient bucket");
    replica.all_reduce(slice(bucket.updated), Reduce::sum, communicate, "gradient bucket");
  }
  done.record(communicate);
  reductions_.push_back({group, whole, done, shard.last_call(), replica.last_call()});
  if (zero_ < 2) return;
  bind_gradient(group, {});
  while (reductions_.size() > 1) settle(context);  // two whole gradients at most
}

/// The compute stream waits for the oldest reduction. What it gave is added to the sums, unless it was made there.
void Shards::settle(Context& context) {
  const Reduction reduction = std::move(reductions_.front());
  reductions_.pop_front();
  reduction.done.wait(context.runtime.device.compute());
  shard_of(reduction.group, context).waited_for(reduction.call);
  context.mesh.replica->waited_for(reduction.call_of_replicas);
  if (zero_ < 2) return;
  const std::int64_t begin = store_.group_begin(reduction.group);
  for (const Bucket& bucket : buckets_of(reduction.group))
    ops::accumulate(context.runtime,
                    reduction.gradient.slice_columns(bucket.updated.begin - begin, bucket.updated.end - begin),
                    bucket.gradient);
}

void Shards::finish(Context& context) {
  assert(std::all_of(groups_.begin(), groups_.end(), [](const Group& group) { return group.writers == 0; }));
  while (!reductions_.empty()) settle(context);
}

void Shards::round(Runtime& runtime) {
  if (runtime.device.counts_only()) return;
  for (const Bucket& bucket : buckets_) {
    if (!bucket.master || bucket.master.dtype() == bucket.value.dtype()) continue;
    runtime.device.compute().enqueue([&device = runtime.device, from = bucket.master, to = bucket.value] {
      device.with_kernels<bf16>([&](auto kernels_of) {
        kernels::cast(kernels_of, from.template data<float>(), to.template data<bf16>(), to.count());
      });
    });
  }
}

void Shards::publish(Context& context) {
  for (Group& group : groups_) group.whole = zero_ == 0;
  for (int group = 0; zero_ < 3 && group < store_.groups(); ++group) prefetch(group, context);
}

std::vector<FlatRange> Shards::updated() const {
  std::vector<FlatRange> ranges;
  for (const Bucket& bucket : buckets_) ranges.push_back(bucket.updated);
  return ranges;
}

std::vector<FlatRange> Shards::counted() const {
  std::vector<FlatRange> ranges;
  for (const Bucket& bucket : buckets_) ranges.push_back(bucket.counted);
  return ranges;
}

std::span<const Bucket> Shards::buckets_of(int group) const {
  const Group& g = groups_[static_cast<std::size_t>(group)];
  return std::span(buckets_).subspan(g.first_bucket, g.buckets);
}

const Bucket& Shards::bucket_of(std::int64_t flat) const {
  const auto after = std::upper_bound(buckets_.begin(), buckets_.end(), flat,
                                      [](std::int64_t at, const Bucket& bucket) { return at < bucket.range.begin; });
  assert(after != buckets_.begin());
  return *(after - 1);
}

Tensor Shards::at(const FlatRange& range, const Tensor Bucket::*tensor) const {
  const Bucket& bucket = bucket_of(range.begin);
  return (bucket.*tensor).slice_columns(range.begin - bucket.updated.begin, range.end - bucket.updated.begin);
}

std::int64_t Shards::gradient_offset(std::int64_t flat) const {
  if (zero_ < 2) return flat;
  const Bucket& bucket = bucket_of(flat);
  return (bucket.gradient.data<char>() - gradients_.data<char>()) / size_of(gradients_.dtype()) + flat -
         bucket.updated.begin;
}

void write(Runtime& runtime, const float* values, const Tensor& to) {
  const auto converted = [&]<class T>(const T*) {
    const std::vector<T> host(values, values + to.count());
    ops::upload(runtime, host.data(), to);
  };
  switch (to.dtype()) {
    case DType::f64:
      return converted(static_cast<const double*>(nullptr));
    case DType::bf16:
      return converted(static_cast<const bf16*>(nullptr));
    default:
      return ops::upload(runtime, values, to);
  }
}

}  // namespace choir
