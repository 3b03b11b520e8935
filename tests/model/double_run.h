// A decoder in double precision, with the reductions of a training step around it but no optimizer. Rounding is 1e-16
// there: a gradient is right or wrong.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "framework/model/families.h"
#include "framework/model/sample.h"
#include "framework/model/stage.h"
#include "framework/parallel/documents.h"
#include "framework/parallel/shards.h"
#include "tests/support/gather.h"
#include "tests/support/small_models.h"

namespace choir::tests {

struct DoubleRun {
  /// `device` and `mesh` outlive the run. Collective over the mesh.
  DoubleRun(const ModelConfig& config, Device& device, Mesh& the_mesh, bool split_rows = false,
            Recompute recompute = Recompute::none, int zero = 0, ContextKind context_kind = ContextKind::automatic)
      : model(config),
        mesh(the_mesh),
        sequence(split_rows),
        kind(context_kind),
        runtime{.device = device, .compute_type = DType::f64},
        stage(make_parts(config, recompute),
              {mesh.tensor->rank(), mesh.tensor->size(), sequence, mesh.expert->rank(), mesh.expert->size()}, store),
        shards(make_shards(zero)) {}

  Context context() { return {.runtime = runtime, .mesh = mesh, .kind = kind, .choices = &choices}; }

  /// The mean loss, with the balance losses of experts and heads, of samples [0, batch) of the random text, in
  /// micro-batches of `micro_batch` sequences. With `gradient`, its gradients are then in the buckets.
  double loss(std::int64_t batch, std::int64_t micro_batch, bool gradient) {
    const std::int64_t length = model.context, here_begin = batch / mesh.shape.data * mesh.here.data;
    const std::int64_t here_end = here_begin + batch / mesh.shape.data;
    const Tensor loss_sum = runtime.empty({1}, DType::f64);
    ops::fill(runtime, loss_sum, 0);
    const Tensor expert_sums = runtime.empty({3}, DType::f64);
    ops::fill(runtime, expert_sums, 0);
    const Tensor head_sums = model.routes_heads() ? runtime.empty({3 + model.routed_heads()}, DType::f64) : Tensor{};
    if (head_sums) ops::fill(runtime, head_sums, 0);
    Context all = context();
    if (gradient) shards.begin_step(all);
    const double scale = 1.0 / static_cast<double>(batch * model.targets_of_sequence());
    const double row_scale = 1.0 / static_cast<double>(batch * length);
    for (std::int64_t begin = here_begin; begin < here_end; begin += micro_batch) {
      Context here = context();
      here.row_scale = gradient ? row_scale : 0;
      here.expert_sums = expert_sums;
      here.head_sums = head_sums;
      const auto held_rows = [&](std::int64_t positions, std::int64_t texts) {
        Rows rows = context_rows(whole_rows(texts * micro_batch, positions, texts * begin), mesh.shape.context,
                                 mesh.here.context);
        if (sequence) {
          rows.split = mesh.tensor->size();
          rows.part = mesh.tensor->rank();
        }
        return rows;
      };
      here.rows = held_rows(length, 1);
      BatchRows held(model, here.rows,
                     model.has_source() ? held_rows(model.source_length(), source_texts(model)) : no_rows());
      SampleBuffer sample(model);
      for (std::int64_t s = 0; s < micro_batch; ++s) {
        random_sample(model, random_key_of_tests, begin + s, sample.view());
        // What the model sees of the next token is no target.
        std::fill_n(sample.targets.begin(), std::max<std::int64_t>(0, model.attention.prefix - 1), -1);
        held.set(s, sample);
      }
      here.documents = held.upload_documents(runtime);
      here.source = held.upload_source(runtime);
      const Batch read = held.upload(runtime);
      Stage::Saved saved;
      stage.forward(0, {}, read, {.sum = loss_sum, .scale = scale, .gradient = gradient}, saved, here, shards);
      if (!gradient) continue;
      stage.backward(0, {}, saved, here, shards, begin + micro_batch == here_end);
    }
    if (gradient) shards.finish(all);
    mesh.gradient->all_reduce(loss_sum, Reduce::sum, runtime.device.compute(), "loss");
    mesh.gradient->all_reduce(expert_sums, Reduce::sum, runtime.device.compute(), "choices");
    double sum = 0, of_experts[3] = {};
    ops::download(runtime, loss_sum, &sum);
    ops::download(runtime, expert_sums, of_experts);
    dropped = of_experts[1];
    rows_of_heads.assign(static_cast<std::size_t>(3 + model.routed_heads()), 0);
    if (head_sums) {
      mesh.gradient->all_reduce(head_sums, Reduce::sum, runtime.device.compute(), "choices");
      ops::download(runtime, head_sums, rows_of_heads.data());
    }
    const double balance = of_experts[2] + rows_of_heads[2];
    heads_dropped = rows_of_heads[1];
    rows_of_heads.erase(rows_of_heads.begin(), rows_of_heads.begin() + 3);
    return sum * scale + balance * row_scale;
  }

  Tensors gradients() {
    Context all = context();
    return gather(model, store, shards, &Bucket::gradient, all);
  }

  ModelConfig model;
  Mesh& mesh;
  bool sequence;
  ContextKind kind;
  Runtime runtime;
  ParameterStore store;
  Stage stage;
  Shards shards;
  ChoiceRecord choices;  // written by each loss(), or replayed
  double dropped = 0;    // choices without a slot, of the last loss()
  double heads_dropped = 0;
  std::vector<double> rows_of_heads;  // computed by each routed head, likewise

 private:
  Shards make_shards(int zero) {
    const kernels::StepScalars third_step{.step = 3};  // dropout's counter
    runtime.scalars = runtime.empty({sizeof third_step}, DType::u8);
    ops::upload(runtime, &third_step, runtime.scalars);
    Context all = context();
    return {store, {.zero = zero, .bucket_elements = 500}, all};  // many buckets
  }
};

/// Log-probability that generate() gives each next token of sample `index`, summed, when the tokens come in pieces of
/// the given sizes, the last one until the end.
inline double generated_loss(DoubleRun& run, std::int64_t index, std::vector<std::int64_t> pieces) {
  const std::int64_t length = run.model.context, vocabulary = run.model.vocabulary;
  SampleBuffer sample(run.model);
  random_sample(run.model, random_key_of_tests, index, sample.view());
  const std::vector<std::int32_t>&ids = sample.inputs, &targets = sample.targets;
  Context context = run.context();
  context.training = false;
  const auto caches = run.stage.make_caches(length, run.runtime);
  double loss = 0;
  std::vector<double> logits(static_cast<std::size_t>(vocabulary));
  const GivenSource source(run.model, sample.source);
  context.source = source.upload(run.runtime, length);
  for (std::int64_t position = 0; position < length;) {
    const std::int64_t count = std::min(pieces.front(), length - position);
    if (pieces.size() > 1) pieces.erase(pieces.begin());
    const std::vector<std::int32_t> piece(ids.begin() + position, ids.begin() + position + count);
    context.rows = {.length = position + count, .runs = {{position, position + count}, {0, 0}}};
    if (!sample.documents.empty())
      context.documents = upload_documents(
          run.runtime, {sample.documents.begin(), sample.documents.begin() + position + count}, context.rows);
    Batch batch{.ids = ops::to_device(run.runtime, piece, DType::i32)};
    if (context.source.rows.count() > 0) batch.source = ops::to_device(run.runtime, source.ids, DType::i32);
    const Tensor result = run.stage.generate(batch, caches, context, run.shards);
    context.source.rows.runs[0] = {0, 0};  // it has been read
    ops::download(run.runtime, result, logits.data());
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit);
    position += count;
    loss += std::log(sum) - logits[static_cast<std::size_t>(targets[static_cast<std::size_t>(position - 1)])];
  }
  return loss;
}

}  // namespace choir::tests
