// An encoder-decoder: the encoder's tokens see each other, those of the decoder what is before them and all that the
// encoder gives. Vaswani et al. 2017, arXiv 1706.03762; the norms are first, and the encoder ends with one.
//
//   source  embedding  encoder block ... encoder block  norm ────┬─ ... ─┐
//   target  embedding ──────────────────────────── decoder block ... decoder block  head
//
// Both go from part to part in one tensor (joined_rows.h): the encoder's parts pass the target on as it is, those of
// the decoder the source. If a decoder reads two sources, the encoder has the same weights for both: they are two
// sequences to it, told apart by a learned row that its embedding adds to the tokens of each.

#include "framework/model/families.h"
#include "framework/model/joined_rows.h"
#include "framework/model/parts.h"
#include "framework/nn/decoder_block.h"

namespace choir {
namespace {

LearnedPositions source_positions(const ModelConfig& c) {
  LearnedPositions positions = learned_positions(c, c.source_length());
  positions.texts = source_texts(c);
  return positions;
}

class EmbeddingsPart final : public Part {
 public:
  EmbeddingsPart(const ModelConfig& c, const TensorShare& share, ParameterStore& store)
      : source_("encoder.embedding", token_table(c), source_positions(c), c.dropout, share, store),
        target_("embedding", token_table(c), learned_positions(c, c.context), c.dropout, share, store) {}

  struct State final : Saved {
    Embedding::Saved source, target;
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor&, const Batch& batch, const Loss&, Saved& saved, Context& context) const override {
    auto& state = static_cast<State&>(saved);
    Context source = of_source(context);
    const Tensor x = batch.source ? source_.forward(batch.source, state.source, source) : Tensor{};
    return join_rows(x, target_.forward(batch.ids, state.target, context), context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    auto& state = static_cast<State&>(saved);
    Context source = of_source(context);
    source_.backward(source_rows(dy, context), state.source, source);
    target_.backward(target_rows(dy, context), state.target, context);
    return {};
  }
  bool backward_reads_values() const override { return false; }

 private:
  Embedding source_, target_;
};

/// A part around a part of the encoder, which computes on the rows of the source.
class OnSource final : public Part {
 public:
  explicit OnSource(std::unique_ptr<Part> part) : part_(std::move(part)) {}

  std::unique_ptr<Saved> make_saved() const override { return part_->make_saved(); }

  Tensor forward(const Tensor& x, const Batch& batch, const Loss& loss, Saved& saved, Context& context) const override {
    if (context.source.rows.count() == 0) return x;  // it has been read
    Context source = of_source(context);
    const Tensor y = part_->forward(source_rows(x, context), batch, loss, saved, source);
    return join_rows(y, target_rows(x, context), context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    Context source = of_source(context);
    DeferredWork weights;
    if (context.deferred) source.deferred = &weights;
    const Tensor dx = part_->backward(source_rows(dy, context), saved, source);
    for (auto& work : weights)
      context.deferred->push_back([work = std::move(work)](Context& later) {
        Context later_source = of_source(later);
        work(later_source);
      });
    return join_rows(dx, target_rows(dy, context), context);
  }

 private:
  std::unique_ptr<Part> part_;
};

class NormPart final : public Part {
 public:
  explicit NormPart(Norm norm) : norm_(std::move(norm)) {}

  struct State final : Saved {
    Norm::Saved norm;
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor& x, const Batch&, const Loss&, Saved& saved, Context& context) const override {
    return norm_.forward(x, static_cast<State&>(saved).norm, context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    return norm_.backward(dy, {}, static_cast<State&>(saved).norm, context);
  }

 private:
  Norm norm_;
};

class DecoderBlockPart final : public Part {
 public:
  DecoderBlockPart(const std::string& name, const BlockShape& shape, const Sources& sources, std::int64_t source_length,
                   const TensorShare& share, ParameterStore& store)
      : block_(name, shape, sources, share, store), source_length_(source_length) {}

  struct State final : Saved {
    DecoderBlock::Saved block;
  };
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<State>(); }

  Tensor forward(const Tensor& x, const Batch&, const Loss&, Saved& saved, Context& context) const override {
    const Tensor memory = source_rows(x, context);
    return join_rows(memory, block_.forward(target_rows(x, context), memory, static_cast<State&>(saved).block, context),
                     context);
  }
  Tensor backward(const Tensor& dy, Saved& saved, Context& context) const override {
    const auto [dx, dmemory] = block_.backward(target_rows(dy, context), static_cast<State&>(saved).block, context);
    const Tensor sum = ops::residual(context.runtime, source_rows(dy, context), dmemory, {}, {});
    return join_rows(sum, dx, context);
  }
  KeyValueCache make_cache(std::int64_t positions, Runtime& runtime) const override {
    return block_.make_cache(positions, source_length_, runtime);
  }

 private:
  DecoderBlock block_;
  std::int64_t source_length_;
};

/// Block `block` of the encoder. What rows add to the balance losses is divided by the number of rows of targets
/// (Context::row_scale); here it is to be the mean over the rows of the source.
BlockShape encoder_shape(const ModelConfig& c, std::int64_t block) {
  BlockShape shape = block_shape(c, source_band(c), c.source_length(), 2 * c.encoder_blocks(), c.has_experts(block));
  const double rows_of_target =
      static_cast<double>(c.context) / static_cast<double>(source_texts(c) * c.source_length());
  shape.experts.balance_factor *= rows_of_target;
  shape.attention.routing.balance_factor *= rows_of_target;
  shape.linear = c.has_linear_attention(block);
  return shape;
}

std::string kind_of(const std::string& block, const ModelConfig& config, std::int64_t number) {
  const std::string kind = config.has_linear_attention(number) ? block + " of linear attention" : block;
  return config.has_experts(number) ? kind + " with experts" : kind;
}

}  // namespace

kernels::Band source_band(const ModelConfig& config) { return kernels::window_band(config.attention.window); }

std::vector<PartSpec> encoder_decoder_parts(const ModelConfig& config, Recompute recompute) {
  const auto add_recompute = [recompute](std::unique_ptr<Part> part) {
    return recompute == Recompute::block ? recomputed(std::move(part)) : std::move(part);
  };
  std::vector<PartSpec> parts;
  parts.push_back({"embedding", "embedding", token_table(config), [=](const TensorShare& share, ParameterStore& store) {
                     return std::make_unique<EmbeddingsPart>(config, share, store);
                   }});
  for (std::int64_t i = 0; i < config.encoder_blocks(); ++i) {
    const std::string name = "encoder.blocks." + std::to_string(i);
    BlockShape encoder = encoder_shape(config, i);
    encoder.recompute = recompute;
    parts.push_back(
        {name, kind_of("encoder block", config, i), {}, [=](const TensorShare& share, ParameterStore& store) {
           return std::make_unique<OnSource>(add_recompute(make_block(name, encoder, share, store)));
         }});
  }
  parts.push_back({"encoder.final_norm", "encoder norm", {}, [=](const TensorShare& share, ParameterStore& store) {
                     return std::make_unique<OnSource>(
                         std::make_unique<NormPart>(make_norm("encoder.final_norm", config, share, store)));
                   }});
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::string name = "blocks." + std::to_string(i);
    BlockShape decoder =
        block_shape(config, decoder_band(config), config.context, 3 * config.layers, config.has_experts(i));
    decoder.linear = config.has_linear_attention(i);
    decoder.recompute = recompute;
    parts.push_back(
        {name, kind_of("decoder block", config, i), {}, [=](const TensorShare& share, ParameterStore& store) {
           return add_recompute(std::make_unique<DecoderBlockPart>(name, decoder, config.attention.sources,
                                                                   config.source_length(), share, store));
         }});
  }
  parts.push_back(token_head_part(config));
  return parts;
}

}  // namespace choir
