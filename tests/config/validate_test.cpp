// validate(): one trigger for each of its messages, and all of them at once. To add a message, add a row to its table.
#include <gtest/gtest.h>

#include <limits>

#include "framework/config/table.h"
#include "kernels/matmul.h"
#include "tests/config/problems.h"

namespace choir {
namespace {

using tests::contains;

using Overrides = std::vector<std::string>;

// Of reading, if it cannot be read.
std::vector<Problem> problems(const Overrides& overrides, std::int64_t ranks) {
  try {
    return validate(read_config("", overrides), ranks);
  } catch (const ConfigError& error) {
    return error.problems();
  }
}

struct Case {
  Overrides overrides;
  std::int64_t ranks;
  std::vector<const char*> parts;  // of the one problem; none: it can run
};

void check(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    const std::vector<Problem> found = problems(c.overrides, c.ranks);
    std::string asked = std::to_string(c.ranks) + " ranks";
    for (const std::string& override : c.overrides) asked += " " + override;
    ASSERT_EQ(found.size(), c.parts.empty() ? 0u : 1u) << asked << "\n" << describe(found);
    for (const char* part : c.parts)
      EXPECT_TRUE(contains(describe(found), part)) << asked << "\nwants: " << part << "\ngot:\n" << describe(found);
    for (const Problem& problem : found) EXPECT_TRUE(!problem.why.empty() && !problem.fix.empty()) << problem.what;
  }
}

TEST(Validate, PipelineStagesHoldAtLeastOnePart) {
  check({
      {{"parallel.pipeline=15"},
       15,
       {"parallel.pipeline = 15 is too many for a model of 14 parts", "set parallel.pipeline to 14 or less"}},
      {{"parallel.pipeline=8", "parallel.schedule=interleaved"},
       8,
       {"parallel.pipeline = 8 with 2 stretches on each stage is too many", "set parallel.pipeline to 7 or less"}},
      {{"parallel.pipeline=2", "parallel.chunks=3", "parallel.schedule=v"},
       2,
       {"parallel.chunks = 3 does not fit parallel.schedule = v", "set parallel.chunks to 2"}},
      {{"parallel.pipeline=2", "parallel.chunks=2"},
       2,
       {"parallel.chunks = 2 does not fit parallel.schedule = 1f1b", "parallel.schedule to interleaved"}},
      {{"parallel.pipeline=2", "parallel.stages=[6, 7]"},
       2,
       {"parallel.stages has 2 numbers with 13 parts in all", "need 2 numbers", "2 numbers whose sum is 14"}},
      {{"parallel.pipeline=3", "parallel.stages=[7, 7]"}, 3, {"parallel.stages has 2 numbers", "3 numbers whose sum"}},
      {{"parallel.pipeline=2", "parallel.tensor=2"},
       6,
       {"6 ranks cannot be laid out with parallel.tensor = 2 and parallel.pipeline = 2", "a multiple of 4",
        "start 4 or 8 ranks, or set parallel.pipeline to 3"}},
      {{"parallel.pipeline=2", "train.batch=6", "parallel.micro_batch=4"},
       2,
       {"train.batch = 6 does not divide by 1 data rank * parallel.micro_batch = 4",
        "set train.batch to 4 or 8, or parallel.micro_batch to 3"}},
  });
}

TEST(Validate, AcceptsWhatCanRun) {
  check({
      {{}, 0, {}},
      {{}, 1, {}},
      {{}, 8, {}},
      {{"parallel.tensor=5", "parallel.sequence=true"}, 10, {}},
      {{"parallel.sequence=true", "parallel.zero=1"}, 1, {}},
      {{"parallel.zero=2"}, 1, {}},
      {{"parallel.zero=3"}, 2, {}},
      {{"parallel.zero=3", "parallel.shard=2"}, 4, {}},
      {{"parallel.pipeline=14"}, 28, {}},
      {{"parallel.context=3", "parallel.tensor=2"}, 12, {}},
      {{"parallel.context=7", "model.context=7"}, 7, {}},
      {{"parallel.pipeline=7", "parallel.schedule=interleaved"}, 7, {}},
      {{"parallel.pipeline=2", "parallel.schedule=v", "parallel.tensor=3"}, 12, {}},
      {{"parallel.pipeline=2", "parallel.stages=[6, 8]", "parallel.schedule=zero_bubble"}, 2, {}},
      {{"model.width=100", "model.attention.heads=25", "model.attention.kv_heads=5"}, 1, {}},
      {{"model.attention.head_width=24", "model.width=100"}, 1, {}},
      {{"model.attention.position=rotary"}, 1, {}},
      {{"model.attention.position=alibi", "model.attention.soft_cap=30", "model.attention.norm=true",
        "model.attention.sinks=true", "model.attention.prefix=20"},
       1,
       {}},
      {{"model.attention.documents=separate", "model.family=encoder", "model.vocabulary=50258"}, 1, {}},
      {{"model.width=8", "model.attention.heads=1", "model.feed_forward.width=4", "model.vocabulary=5"}, 1, {}},
      {{"data.tokenizer.kind=bytes", "model.vocabulary=257", "data.tokenizer.vocabulary=257"}, 1, {}},
      {{"train.steps=10", "optimizer.warmup=10"}, 1, {}},
      {{"train.steps=10", "optimizer.schedule=warmup_stable_decay", "optimizer.warmup=4", "optimizer.decay=6"}, 1, {}},
      {{"optimizer.kind=sgd", "optimizer.momentum=0.9"}, 1, {}},
      {{"train.precision=bf16", "train.emulate_bf16=true"}, 1, {}},
      {{"train.batch=48", "parallel.micro_batch=4", "parallel.tensor=2"}, 6, {}},
  });
}

TEST(Validate, WhatATokenSeesFitsTheFamily) {
  check({
      {{"model.attention.documents=separate", "model.family=classifier"},
       1,
       {"model.attention.documents = separate with model.family = classifier", "delete model.attention.documents"}},
      {{"model.attention.prefix=4", "model.family=encoder", "model.vocabulary=50258"},
       1,
       {"model.attention.prefix = 4 with model.family = encoder", "delete model.attention.prefix"}},
      {{"model.attention.prefix=64", "model.context=64"},
       1,
       {"model.attention.prefix = 64 leaves no target in model.context = 64",
        "set model.attention.prefix to 63 or less"}},
      {{"model.attention.prefix=4", "model.attention.documents=separate"},
       1,
       {"model.attention.prefix = 4 with model.attention.documents = separate",
        "set model.attention.prefix to 0, or model.attention.documents to joined"}},
  });
}

TEST(Validate, LinearAttentionHasAState) {
  check({
      {{"model.attention.kind=linear", "model.attention.softmax_every=4", "model.attention.position=rotary",
        "model.attention.norm=true", "model.attention.documents=separate", "train.inspect_every=10"},
       1,
       {}},
      {{"model.attention.softmax_every=2"},
       1,
       {"model.attention.softmax_every = 2 with model.attention.kind = softmax",
        "set model.attention.softmax_every to 0, or model.attention.kind to linear or delta"}},
      {{"model.attention.kind=delta", "model.attention.softmax_every=4", "model.attention.position=rotary",
        "train.inspect_every=10"},
       1,
       {}},
      {{"model.attention.kind=delta", "model.family=encoder", "model.vocabulary=50258"}, 1, {}},
      {{"model.attention.kind=linear", "model.family=encoder", "model.vocabulary=50258"}, 1, {}},
  });
  const std::pair<const char*, const char*> refused[] = {
      {"model.attention.window=8", "model.attention.window = 8"},
      {"model.attention.position=alibi", "model.attention.position = alibi"},
      {"model.attention.sinks=true", "model.attention.sinks = true"},
      {"model.attention.soft_cap=30", "model.attention.soft_cap = 30"},
      {"model.attention.prefix=4", "model.attention.prefix = 4"},
      {"model.attention.dropout=0.1", "model.attention.dropout = 0.1"},
      {"model.attention.kv_heads=1", "model.attention.kv_heads = 1 and model.attention.heads = 12"},
  };
  std::vector<std::string> all{"model.attention.kind=linear"};
  for (const auto& [override, text] : refused) {
    all.emplace_back(override);
    const std::string what = std::string(text) + " with model.attention.kind = linear";
    check({{{"model.attention.kind=linear", override}, 1, {what.c_str(), "set model.attention.kind to softmax"}}});
  }
  EXPECT_EQ(problems(all, 1).size(), std::size(refused)) << "all at once";
}

TEST(Validate, EnumeratedValues) {
  check({
      {{"model.family=encoder-decoder"},
       1,
       {"model.family = encoder-decoder is not a known value", "did you mean encoder_decoder?"}},
      {{"train.device=gpu"}, 1, {"train.device = gpu is not a known value", "auto | cpu | cuda"}},
      {{"train.attention.implementation=flsh"}, 1, {"auto | cudnn | flash", "did you mean flash?"}},
      {{"model.feed_forward.kind=swigul"},
       1,
       {"model.feed_forward.kind = swigul is not a known value", "gelu | gelu_erf | swiglu", "did you mean swiglu?"}},
      {{"model.norm.kind=x"},
       1,
       {"model.norm.kind = x is not a known value", "set model.norm.kind to layer_norm or rms_norm"}},
      {{"train.precision=fp16"}, 1, {"train.precision = fp16 is not a known value", "f32 | bf16"}},
      {{"train.streams=x"}, 1, {"train.streams = x", "immediate or threaded"}},
      {{"train.recompute=full"}, 1, {"train.recompute = full", "none | norms | attention | feed_forward | block"}},
      {{"optimizer.kind=adam"}, 1, {"optimizer.kind = adam", "did you mean adamw?"}},
      {{"optimizer.schedule=cosin"}, 1, {"optimizer.schedule = cosin", "did you mean cosine?"}},
      {{"data.tokenizer.kind=bpe"}, 1, {"data.tokenizer.kind = bpe", "bytes or sentencepiece"}},
      {{"optimizer.kind="}, 1, {"optimizer.kind = \"\" is not a known value"}},
  });
}

TEST(Validate, AnEncoderDecoderHasASource) {
  check({
      {{"model.family=encoder_decoder", "model.context=64", "model.source_context=32", "parallel.context=4"}, 4, {}},
      {{"model.source_context=32"},
       1,
       {"model.source_context = 32 with model.family = decoder", "or set model.family to encoder_decoder"}},
      {{"model.encoder_layers=2"}, 1, {"model.encoder_layers = 2 with model.family = decoder"}},
      {{"generate.beam=2"}, 1, {"generate.beam = 2 with model.family = decoder"}},
      {{"model.family=encoder_decoder", "model.context=64", "model.source_context=2", "parallel.context=4"},
       4,
       {"parallel.context = 4 is too many for model.source_context = 2"}},
      {{"model.family=encoder_decoder", "generate.temperature=0.5"},
       1,
       {"generate.temperature = 0.5 with model.family = encoder_decoder", "the likeliest text is searched for"}},
      {{"model.family=encoder_decoder", "model.experts.count=4", "model.attention.routing.chosen=4"}, 1, {}},
      {{"model.attention.sources.keys=sauce", "model.family=encoder_decoder"},
       1,
       {"model.attention.sources.keys = sauce is not a known value",
        "is target | source | second_source: encoder_decoder", "did you mean source?"}},
      {{"model.attention.sources.keys=target"},
       1,
       {"model.attention.sources.keys = target with model.family = decoder", "set model.family to encoder_decoder"}},
      {{"model.family=encoder_decoder", "model.attention.sources.keys=target", "model.source_context=1024"}, 1, {}},
      {{"model.family=encoder_decoder", "model.attention.sources.values=target", "model.source_context=32"},
       1,
       {"model.attention.sources = {target, source, target} with model.source_context = 32 and model.context = 1024",
        "set model.source_context to 1024, or to 0"}},
      {{"model.family=encoder_decoder", "model.attention.sources.keys=target", "model.attention.sources.values=target"},
       1,
       {"model.attention.sources = {target, target, target}", "nothing of the decoder would read the source"}},
      {{"model.family=encoder_decoder", "model.attention.sources.keys=second_source"}, 1, {}},
      {{"model.family=encoder_decoder", "model.attention.sources.values=second_source", "model.source_context=32"},
       1,
       {}},
      {{"model.family=encoder_decoder", "model.attention.sources.keys=second_source",
        "model.attention.sources.values=target"},
       1,
       {"model.attention.sources = {target, second_source, target}",
        "nothing of the decoder would read the first source"}},
      {{"model.family=encoder_decoder", "model.attention.sources.queries=second_source"},
       1,
       {"model.attention.sources.queries = second_source", "set model.attention.sources.queries to target"}},
      {{"model.family=encoder_decoder", "model.attention.sources.queries=source"},
       1,
       {"model.attention.sources.queries = source", "set model.attention.sources.queries to target"}},
      {{"model.family=encoder_decoder", "model.attention.documents=separate"},
       1,
       {"model.attention.documents = separate with model.family = encoder_decoder", "one pair of texts"}},
  });
}

TEST(Validate, AnEncoderHasAMaskTokenAndShares) {
  check({
      {{"model.family=encoder"}, 1, {}},
      {{"model.family=encoder", "data.tokenizer.kind=bytes", "model.vocabulary=258"}, 1, {}},
      {{"model.family=encoder", "data.tokenizer.kind=bytes", "model.vocabulary=257"},
       1,
       {"model.vocabulary = 257 leaves no id for the mask token beside the 257 tokens of the tokenizer",
        "data.tokenizer.kind = bytes", "set model.vocabulary to 258 or more"}},
      {{"model.family=encoder", "data.tokenizer.vocabulary=500", "model.vocabulary=400"},
       1,
       {"model.vocabulary = 400 is below the 500 tokens of the tokenizer", "set model.vocabulary to 501 or more"}},
      {{"model.family=encoder", "data.masked.mask_token=0.8", "data.masked.random_token=0.3"},
       1,
       {"data.masked.mask_token = 0.8 and data.masked.random_token = 0.3 are together more than 1"}},
      {{"model.family=encoder", "data.masked.share=0"}, 1, {"data.masked.share = 0 is out of range"}},
      {{"model.family=vision", "model.image.height=20"},
       1,
       {"model.context = 1024, but images of 20 x 28 pixels in squares of 4 have 35 positions",
        "set model.context to 35"}},
      {{"model.family=vision", "model.pool=class_token", "model.context=49"},
       1,
       {"50 positions with the class token", "set model.context to 50"}},
      {{"model.family=vision", "model.image.patch=5", "model.context=49"},
       1,
       {"model.image.patch = 5 does not divide images of 28 x 28 pixels",
        "set model.image.patch to one of 1, 2, 4, 7, 14, 28"}},
      {{"model.family=vision", "model.context=49"}, 1, {}},
      {{"model.family=vision", "model.context=49", "model.image.stem=convolution",
        "model.attention.position=learned_2d", "model.attention.dropout=0.1"},
       1,
       {}},
      {{"model.family=vision", "model.context=16", "model.image.stem=convolution", "model.image.patch=7"},
       1,
       {"model.image.patch = 7 with model.image.stem = convolution", "set model.image.patch to a power of two"}},
      {{"model.attention.position=rotary_2d"},
       1,
       {"model.attention.position = rotary_2d with model.family = decoder", "set model.attention.position to rotary"}},
      {{"model.family=vision", "model.context=49", "data.masked.share=0.3"},
       1,
       {"data.masked.share = 0.3 with model.family = vision"}},
      {{"model.family=vision", "model.context=49", "model.classes=2", "parallel.tensor=3"},
       3,
       {"parallel.tensor = 3 is too many for model.classes = 2", "each tensor rank holds at least one class"}},
      {{"data.augment.shift=1"},
       1,
       {"data.augment.shift = 1 with model.family = decoder", "set model.family to vision"}},
      {{"model.image.patch=7"}, 1, {"model.image.patch = 7 with model.family = decoder"}},
      {{"model.classes=3"}, 1, {"model.classes = 3 with model.family = decoder", "classifier or vision"}},
      {{"data.masked.share=0.3"},
       1,
       {"data.masked.share = 0.3 with model.family = decoder", "set model.family to encoder"}},
  });
}

TEST(Validate, AGpuNeedsABuildWithCuda) {
  if (kernels::built_with_cuda)
    check({{{"train.device=cuda"}, 0, {}}, {{"train.device=cuda", "train.precision=bf16"}, 0, {}}});
  else
    check({{{"train.device=cuda"},
            1,
            {"train.device = cuda, but this choir was built without CUDA", "install the toolkit"}}});
}

TEST(Validate, Ranges) {
  check({
      {{"model.layers=0"}, 1, {"model.layers = 0 is out of range", "integer >= 1", "set model.layers to 1 or more"}},
      {{"model.layers=3000000000"},
       1,
       {"model.layers = 3000000000 is out of range", "set model.layers to 2147483647 or less"}},
      {{"train.batch=-4"}, 1, {"train.batch = -4 is out of range"}},
      {{"train.steps=0"}, 1, {"train.steps = 0 is out of range"}},
      {{"model.attention.heads=0"}, 1, {"model.attention.heads = 0 is out of range"}},
      {{"model.attention.kv_heads=-1"}, 1, {"model.attention.kv_heads = -1 is out of range", "0 or more"}},
      {{"model.attention.window=-1"}, 1, {"model.attention.window = -1 is out of range"}},
      {{"model.dropout=1"}, 1, {"model.dropout = 1 is out of range", "number in [0, 1)"}},
      {{"model.dropout=-0.1"}, 1, {"model.dropout = -0.1 is out of range"}},
      {{"model.norm.epsilon=0"}, 1, {"model.norm.epsilon = 0 is out of range", "number > 0"}},
      {{"train.timeout=-1"}, 1, {"train.timeout = -1 is out of range"}},
      {{"train.threads=-1"}, 1, {"train.threads = -1 is out of range"}},
      {{"train.log_every=0"}, 1, {"train.log_every = 0 is out of range"}},
      {{"optimizer.betas=[0.9, 1.0]"}, 1, {"optimizer.betas = [0.9, 1] is out of range", "two numbers in [0, 1)"}},
      {{"optimizer.rate=0"}, 1, {"optimizer.rate = 0 is out of range"}},
      {{"optimizer.epsilon=0"}, 1, {"optimizer.epsilon = 0 is out of range"}},
      {{"optimizer.kind=sgd", "optimizer.momentum=1"}, 1, {"optimizer.momentum = 1 is out of range"}},
      {{"optimizer.clip=-1"}, 1, {"optimizer.clip = -1 is out of range", "number >= 0"}},
      {{"optimizer.final_rate=1.5"}, 1, {"optimizer.final_rate = 1.5 is out of range", "[0, 1]"}},
      {{"checkpoint.every=-1"}, 1, {"checkpoint.every = -1 is out of range"}},
      {{"checkpoint.keep=-1"}, 1, {"checkpoint.keep = -1 is out of range"}},
      {{"data.held_out=1"}, 1, {"data.held_out = 1 is out of range"}},
      {{"generate.top_p=0"}, 1, {"generate.top_p = 0 is out of range", "number in (0, 1]"}},
      {{"parallel.tensor=0"}, 1, {"parallel.tensor = 0 is out of range"}},
      {{"parallel.pipeline=0"}, 2, {"parallel.pipeline = 0 is out of range"}},
      {{"parallel.chunks=-1"}, 1, {"parallel.chunks = -1 is out of range"}},
      {{"parallel.stages=[3, 0]", "parallel.pipeline=2"}, 2, {"parallel.stages = [3, 0] is out of range"}},
      {{"parallel.expert=2"}, 2, {"the model has no experts", "set parallel.expert to 1, or give model.experts.count"}},
      {{"parallel.expert=3", "model.experts.count=4"},
       4,
       {"parallel.expert = 3 does not divide the 4 ranks", "set parallel.expert to one of 1, 2, 4"}},
      {{"parallel.expert=4", "model.experts.count=2"},
       4,
       {"parallel.expert = 4 is too many for model.experts.count = 2", "set parallel.expert to one of 1, 2"}},
      {{"parallel.expert=4", "parallel.tensor=2", "model.experts.count=4"},
       4,
       {"parallel.expert = 4 does not divide the 2 ranks", "set parallel.expert to one of 1, 2"}},
      {{"parallel.expert=2", "parallel.shard=3", "parallel.zero=1", "model.experts.count=4", "train.batch=6"},
       6,
       {"parallel.expert = 2 does not divide parallel.shard = 3", "set parallel.expert to one of 1, 3"}},
      {{"model.experts.count=2", "model.experts.chosen=3"},
       1,
       {"model.experts.chosen = 3 is more than model.experts.count = 2", "set model.experts.chosen to 2 or less"}},
      {{"model.attention.routing.always=1"},
       1,
       {"model.attention.routing.always = 1 with model.attention.routing.chosen = 0", "every token has all heads"}},
      {{"model.attention.routing.chosen=3", "model.attention.routing.always=2", "model.attention.heads=4"},
       1,
       {"are more than model.attention.heads = 4", "whose sum is 4 or less"}},
      {{"model.attention.routing.chosen=2", "model.attention.position=alibi"},
       1,
       {"model.attention.position = alibi with model.attention.routing.chosen = 2", "to rotary or learned"}},
      {{"model.attention.routing.chosen=2", "model.attention.dropout=0.5"},
       1,
       {"model.attention.dropout = 0.5 with", "delete model.attention.dropout; model.dropout works"}},
      {{"model.attention.routing.chosen=2", "parallel.context=2", "parallel.context_kind=ring"},
       2,
       {"parallel.context_kind = ring with", "the keys of all positions", "to gather or auto"}},
      {{"model.experts.count=2", "model.experts.every=9", "model.layers=4"},
       1,
       {"model.experts.every = 9 is more than model.layers = 4", "set model.experts.every to 4 or less"}},
      {{"parallel.context=0"}, 2, {"parallel.context = 0 is out of range", "set parallel.context to 1 or more"}},
      {{"parallel.context=5", "model.context=4"},
       5,
       {"parallel.context = 5 is too many for model.context = 4", "at least one position", "to 4 or less"}},
      {{"parallel.context=4", "parallel.context_kind=heads", "parallel.tensor=2", "model.attention.heads=6",
        "model.attention.head_width=8"},
       8,
       {"parallel.context = 4 is too many for model.attention.heads = 6 on parallel.tensor = 2",
        "at least one query head", "set parallel.context to 3 or less, or parallel.context_kind to ring"}},
      {{"parallel.context=2", "parallel.tensor=2"},
       6,
       {"6 ranks cannot be laid out with parallel.tensor = 2 and parallel.context = 2", "a multiple of 4",
        "start 4 or 8 ranks, or set parallel.context to 3"}},
      {{"parallel.zero=4"}, 2, {"parallel.zero = 4 is out of range", "3 or less"}},
      {{"parallel.shard=2"}, 2, {"parallel.shard = 2 without parallel.zero", "set parallel.zero to 1, 2 or 3"}},
      {{"parallel.zero=1", "parallel.shard=4", "train.batch=6"},
       6,
       {"parallel.shard = 4 does not divide 6 context * data ranks", "one of 1, 2, 3, 6"}},
      {{"parallel.zero=-1"}, 2, {"parallel.zero = -1 is out of range"}},
      {{"parallel.micro_batch=-1"}, 1, {"parallel.micro_batch = -1 is out of range"}},
  });
}

TEST(Validate, NaNAndInfinityAreFound) {
  Config config;
  config.optimizer.rate = std::numeric_limits<double>::quiet_NaN();
  config.optimizer.clip = std::numeric_limits<double>::infinity();
  EXPECT_EQ(validate(config, 1).size(), 2u) << describe(validate(config, 1));
}

TEST(Validate, Heads) {
  check({
      {{"model.width=770"},
       1,
       {"model.width = 770 does not divide by model.attention.heads = 12",
        "set model.width to 768 or 780, or give model.attention.head_width"}},
      {{"model.width=8"}, 1, {"model.width = 8 does not divide", "set model.width to 12,"}},
      {{"model.attention.kv_heads=5"},
       1,
       {"model.attention.kv_heads = 5 does not divide model.attention.heads = 12", "one of 1, 2, 3, 4, 6, 12"}},
      {{"model.attention.kv_heads=24"}, 1, {"model.attention.kv_heads = 24 does not divide"}},
      {{"model.attention.position=rotary", "model.width=756"},
       1,
       {"rotary with heads of width 63 (model.width = 756 / model.attention.heads = 12)",
        "set model.attention.head_width to 64"}},
      {{"model.attention.position=rotary", "model.attention.head_width=5"},
       1,
       {"rotary with heads of width 5\n", "head_width to 6"}},
      {{"model.attention.position=rotary_2d", "model.attention.head_width=6", "model.family=vision",
        "model.context=49"},
       1,
       {"rotary_2d with heads of width 6\n", "so that the width of a head divides by 4", "head_width to 8"}},
  });
}

TEST(Validate, Tokenizer) {
  check({
      {{"data.tokenizer.kind=bytes", "data.tokenizer.vocabulary=300"},
       1,
       {"data.tokenizer.vocabulary = 300 with data.tokenizer.kind = bytes", "0 or 257"}},
      {{"data.tokenizer.kind=bytes", "model.vocabulary=256"},
       1,
       {"model.vocabulary = 256 is below the 257 tokens", "set model.vocabulary to 257 or more"}},
      {{"data.tokenizer.vocabulary=60000"},
       1,
       {"model.vocabulary = 50257 is below the 60000 tokens of the tokenizer (data.tokenizer.vocabulary = 60000)"}},
  });
}

TEST(Validate, Precision) {
  for (const std::string precision : {"bf16", "fp8"}) {  // the CPU multiplies in bf16 what 8 bits stand for
    const std::vector<std::string> keys = {"train.precision=" + precision},
                                   emulated = {keys[0], "train.emulate_bf16=true"};
    check({{emulated, 1, {}}});
    if (kernels::cpu::has_native_bf16()) {
      check({{keys, 1, {}}});
    } else {
      const std::string what = "train.precision = " + precision + ", but this processor has no bf16 instructions";
      check({{keys, 1, {what.c_str(), "avx512_bf16", "set train.precision to f32, or train.emulate_bf16 to true"}}});
    }
  }
}

TEST(Validate, CpuKernels) {
  const std::vector<std::string> bf16 = {"train.precision=bf16", "train.emulate_bf16=true", "train.device=cpu",
                                         "train.cpu_kernels=tiles"};
  if (kernels::cpu::has_tiles()) {
    check({{bf16, 1, {}}});
  } else {
    check({{bf16,
            1,
            {"train.cpu_kernels = tiles, but this processor has no tiles", "amx_tile, amx_bf16",
             "set train.cpu_kernels to auto or onednn"}}});
  }
  check({{{"train.cpu_kernels=tiles"}, 1, {}}, {{"train.precision=bf16", "train.emulate_bf16=true"}, 1, {}}});
}

TEST(Validate, Offload) {
  check({{{"train.offload=optimizer"}, 1, {}},
         {{"train.offload=optimizer", "train.device=cpu"},
          1,
          {"train.offload = optimizer on the CPU", "a run on the CPU has all", "set train.offload to none"}}});
}

TEST(Validate, Schedule) {
  check({
      {{"train.steps=10", "optimizer.warmup=11"},
       1,
       {"optimizer.warmup = 11 is more than train.steps = 10",
        "set train.steps to 11 or more, or optimizer.warmup to 10 or less"}},
      {{"train.steps=10", "optimizer.schedule=warmup_stable_decay", "optimizer.warmup=5", "optimizer.decay=6"},
       1,
       {"optimizer.warmup = 5 + optimizer.decay = 6 is more than train.steps = 10", "train.steps to 11",
        "or optimizer.warmup + optimizer.decay to 10 or less"}},
      {{"optimizer.decay=5"},
       1,
       {"optimizer.decay = 5 with optimizer.schedule = cosine", "set optimizer.schedule to warmup_stable_decay"}},
      {{"optimizer.momentum=0.9"},
       1,
       {"optimizer.momentum = 0.9 with optimizer.kind = adamw", "set optimizer.kind to sgd"}},
      {{"optimizer.kind=sgd", "optimizer.moments=bf16"},
       1,
       {"optimizer.moments = bf16 with optimizer.kind = sgd", "set optimizer.kind to adamw"}},
  });
}

TEST(Validate, Layout) {
  check({
      {{"parallel.tensor=4"},
       6,
       {"6 ranks cannot be laid out with parallel.tensor = 4", "a multiple of 4",
        "start 4 or 8 ranks, or set parallel.tensor to 3"}},
      {{"parallel.tensor=2"},
       1,
       {"1 rank cannot be laid out with parallel.tensor = 2", "start 2 ranks, or set parallel.tensor to 1"}},
      {{"parallel.tensor=13", "train.batch=1"},
       13,
       {"parallel.tensor = 13 is too many for model.attention.heads = 12", "at least one query head",
        "set parallel.tensor to 12 or less"}},
      {{"parallel.tensor=4", "model.feed_forward.width=24"},
       4,
       {"parallel.tensor = 4 is too many for model.feed_forward.width = 24", "units of 8", "3 or less"}},
      {{"parallel.tensor=12", "model.width=12"},
       12,
       {"parallel.tensor = 12 is too many for a feed-forward width of 48 (4 * model.width = 12)", "6 or less"}},
      {{"parallel.tensor=4", "model.vocabulary=31"},
       4,
       {"parallel.tensor = 4 is too many for model.vocabulary = 31", "3 or less"}},
      {{"parallel.tensor=4"}, 0, {}},
  });
}

TEST(Validate, Batch) {
  check({
      {{"train.batch=30", "parallel.micro_batch=4"},
       4,
       {"train.batch = 30 does not divide by 4 data ranks * parallel.micro_batch = 4, which is 16",
        "set train.batch to 16 or 32"}},
      {{"train.batch=30", "parallel.tensor=2"},
       8,
       {"train.batch = 30 does not divide by 4 data ranks\n", "set train.batch to 28 or 32"}},
      {{"train.batch=3"}, 4, {"train.batch = 3 does not divide by 4 data ranks", "set train.batch to 4"}},
      {{"train.batch=6", "parallel.micro_batch=4"},
       0,
       {"train.batch = 6 does not divide by 1 data rank * parallel.micro_batch = 4", "4 or 8"}},
  });
}

TEST(Validate, ListsAllProblemsAtOnce) {
  const std::vector<Problem> found = problems(
      {"model.layers=0", "model.width=770", "optimizer.warmup=2000", "parallel.tensor=4", "model.attention.kv_heads=5"},
      6);
  EXPECT_EQ(found.size(), 5u) << describe(found);
}

// Every pair of integers at the ends of their type: no division by zero and no overflow (the sanitizers watch).
TEST(Validate, SurvivesExtremeIntegers) {
  Config config;
  std::vector<std::int64_t*> slots;
  for (const Field& field : table(config))
    if (const auto* slot = std::get_if<std::int64_t*>(&field.slot)) slots.push_back(*slot);
  const std::vector<std::int64_t> values = {std::numeric_limits<std::int64_t>::min(), -1, 0, 1, 2147483647,
                                            std::numeric_limits<std::int64_t>::max()};
  for (std::int64_t* a : slots) {
    for (std::int64_t* b : slots) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        config = Config{};
        *a = values[i];
        *b = values[(i * 5 + 2) % values.size()];
        validate(config, 7);
      }
    }
  }
}

}  // namespace
}  // namespace choir
