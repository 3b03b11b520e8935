// A layer of experts in place of the feed-forward layer (Shazeer et al. 2017, arXiv 1701.06538; Fedus et al. 2021,
// arXiv 2101.03961), with the residual add behind it:
//
//   y = residual + dropout(sum over the chosen experts e of w_e(x) expert_e(x)) (+ the shared experts' output)
//
// A token chooses experts by the scores of a router, to which a bias may be added that rises for experts with few
// tokens (Wang et al. 2024, arXiv 2408.15664). An expert takes the first `capacity` tokens of a sequence that
// chose it, by position: a token never changes what earlier ones get, and what is dropped does not depend on the
// layout. All tensor ranks choose alike, and each has a share of every expert's hidden columns; expert ranks share the
// experts.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/nn/feed_forward.h"
#include "framework/ops/experts.h"

namespace choir {

struct ExpertsShape {
  std::int64_t count = 0, chosen = 1;
  std::int64_t capacity = 1;  ///< tokens of a sequence that an expert takes
  std::int64_t shared = 0;    ///< experts that are always on: one feed-forward layer of so many times the width
  ops::ExpertScore score = ops::ExpertScore::softmax;
  double balance_factor = 0;     ///< BalanceLoss::factor; 0: no balance loss
  bool biased = false;           ///< choices are by score + bias
  float bias_step = 0;           ///< Parameter::sign_step of the biases
  FeedForwardShape expert = {};  ///< the shape of one; `bias` is for the shared ones only
};

class Experts {
 public:
  struct Saved {
    Tensor x;               // [rows held, D]: the input
    Tensor logits;          // [N, experts]
    ops::Routed routed;     // [N, k]
    ops::Slots slots;       // [N, k] and [slots]
    Tensor counts;          // [context ranks, B, 2, experts]
    Tensor entered;         // [experts held * n, D]
    Tensor hidden, active;  // [experts held * n, F held], before the activation gated 2 F; after it
    Tensor out;             // [slots, D]
    FeedForward::Saved shared;

    void set_input(const Tensor& input) { x = shared.x = input; }
  };

  /// Opens a group of `store` for the weights of the experts.
  Experts(const std::string& name, const ExpertsShape&, const TensorShare&, ParameterStore&);

  /// x and residual [rows held, D] -> y [rows held, D]
  Tensor forward(const Tensor& x, const Tensor& residual, Saved&, Context&) const;
  /// dy [rows held, D] -> dx [rows held, D]; the gradient of `residual` is dy itself. There is no bias to sum it for.
  Tensor backward(const Tensor& dy, const Saved&, Context&, Tensor* sum_of_dy = nullptr) const;

  /// Of Recompute, and what it asks for (recompute.h).
  static constexpr Recompute recomputed_by = Recompute::feed_forward;
  void forget(Saved&) const;
  void compute_again(Saved&, Context&) const;

  /// The part of the cache for generation: see KeyValueCache::choices.
  Tensor make_cache(Runtime&) const;

 private:
  void activate(Saved&, Context&) const;
  ops::Dropout dropout(const Context&) const;
  ops::BalanceLoss balance(const Tensor& counts, double scale) const;
  Tensor bias() const;
  ops::Routed route(const Tensor& logits, Context&) const;
  ops::SlotRule slot_rule(const Context&) const;

  ExpertsShape shape_;
  std::string name_;
  kernels::ExpertPlaces places_;
  std::int64_t held_ = 0;  // experts
  Weight *router_ = nullptr, *bias_ = nullptr;
  std::optional<FeedForward> shared_;
  Weight *up_ = nullptr, *down_ = nullptr;
};

}  // namespace choir
