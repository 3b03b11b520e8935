// Attention of a decoder's tokens to the output of an encoder, the memory; its heads split over the tensor axis: a
// branch of the residual stream.
//
//   q, k, v = s Wq^T + bq, s' Wk^T + bk, s" Wv^T + bv   of x or of the memory, as Sources say; one product of each text
//   q, k    = norm(q), norm(k)                          if asked for
//   a       = softmax(mask(score(q k^T / sqrt(E)))) v   per head; the mask leaves out what pads a source
//   branch  = dropout(a Wo^T + bo)                      summed over the ranks
//
// Of {target, source, source}, nothing here knows positions: a token sees all of the source. Over the context axis,
// keys and values are gathered, whatever parallel.context_kind says. Vaswani et al. 2017, arXiv 1706.03762. If the
// sources are aligned (sources.h), all is as in self-attention, from the band to the ways over the context axis.
//
// Of {target, source, second_source}, or with keys and values the other way round, the memory is of two texts
// (text_rows.h), of which one has the keys and the other the values; the rest is as of {target, source, source}.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "framework/nn/attention.h"
#include "framework/nn/sources.h"

namespace choir {

enum class Projection { query, key, value };

class CrossAttention {
 public:
  struct Saved {
    Tensor x, memory;  // [rows held, D]: the inputs, the memory of all texts
    HeadNorms::Saved norms;
    AttendedAcross across;  // of q, and of k and v side by side, after norms
    Attended aligned;       // of q, k and v side by side, after norms and rotary, if the sources are aligned

    void set_input(const Tensor& input) { x = input; }
  };

  /// Every token has all heads. Without aligned sources, the band and the positions of the shape are not used.
  CrossAttention(const std::string& name, const AttentionShapeConfig&, const Sources&, const TensorShare&,
                 ParameterStore&);

  /// x [rows held, D], memory [rows of the source held, D] -> the branch [rows held, D]. With context.cache, one
  /// sequence: keys and values are added to the cache, and those of the memory read from it if no row of the source is
  /// held.
  ops::Branch forward(const Tensor& x, const Tensor& memory, Saved&, Context&) const;

  /// Of Recompute, and what it asks for (recompute.h).
  static constexpr Recompute recomputed_by = Recompute::attention;
  void forget(Saved&) const;
  void compute_again(Saved&, Context&) const;

  struct Gradients {
    Tensor dx;       // [rows held, D]
    Tensor dmemory;  // [rows of the source held, D]
  };
  /// dy [rows held, D]; the gradient of `residual` is dy itself.
  Gradients backward(const Tensor& dy, const Saved&, Context&) const;

  /// Room for `positions` tokens of one sequence, and a source of `source_positions`.
  void add_to_cache(KeyValueCache&, std::int64_t positions, std::int64_t source_positions, Runtime&) const;

 private:
  AttentionSpec spec(const Context&) const;
  /// Who computes x and who the memory: the decoder, the encoder.
  enum class Side { target, source };
  Side side_of(Projection) const;
  std::int64_t width(Projection) const;
  std::int64_t product_width(Side) const;
  /// The columns of a projection in all that its side gives, and in q, k and v side by side.
  Tensor in_product(const Tensor&, Projection) const;
  Tensor in_qkv(const Tensor&, Projection) const;
  template <class Body>
  void for_each_of(Side, const Body& body) const;
  std::int64_t texts() const { return std::ssize(of_texts_); }
  Context reading(const Context&) const;
  Tensor project_target(const Tensor& x, Saved&, Context&) const;
  Tensor project_source(const Tensor& memory, Saved&, Context&) const;
  PendingTensor project_target_backward(const Tensor& dproduct, const Saved&, Context&) const;
  PendingTensor project_source_backward(const Tensor& dproduct, const Saved&, Context&) const;
  void place(Side, const Tensor& product, Saved&, Context&) const;
  void place_backward(Side, const Tensor& dproduct, const Saved&, Context&) const;
  Tensor of_text(const Tensor& product, std::int64_t text, Context&) const;
  Tensor align(const Tensor& from_target, const Tensor& from_source, Context&) const;
  Tensor of_side(Side, const Tensor& dqkv, Context&) const;
  Tensor attend_to_cache(const Tensor& x, const Tensor& memory, Saved&, Context&) const;
  Tensor attend_to_both(const Tensor& x, const Tensor& memory, Saved&, Context&) const;
  ops::Dropout dropout(const Context&) const;

  AttentionShapeConfig config_;
  Sources sources_;
  std::string name_;
  HeadPartition partition_;
  std::int64_t rank_;
  ColumnLinear of_target_;
  std::vector<TokenStream> streams_;    // of the memory, text after text
  std::vector<ColumnLinear> of_texts_;  // likewise
  RowLinear out_;
  Weight* sinks_;  // [H held]; null: none
  HeadNorms norms_;
};

}  // namespace choir
