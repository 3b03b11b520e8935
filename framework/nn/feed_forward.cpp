#include "framework/nn/feed_forward.h"

namespace choir {
namespace {

constexpr std::int64_t column_unit = 8;  // so that every rank's slice fills whole vectors

std::vector<ColumnPart> up_parts(const std::string& name, const FeedForwardShape& s, const TensorShare& share) {
  const Slice held = feed_forward_columns(s.hidden, share);
  const ColumnPart up{name + ".up", s.hidden, held, held, false};
  if (kernels::inputs_per_output(s.activation) == 1) return {up};
  return {{name + ".gate", s.hidden, held, held, false}, up};
}

}  // namespace

Slice feed_forward_columns(std::int64_t hidden, const TensorShare& share) {
  return even_slice_in_units(hidden, column_unit, share.size, share.rank);
}

FeedForward::FeedForward(const std::string& name, const FeedForwardShape& shape, const TensorShare& share,
                         ParameterStore& store)
    : shape_(shape),
      name_(name),
      up_(up_parts(name, shape, share), shape.width, shape.bias, shape.deviation, store),
      down_(name + ".down", shape.width, shape.hidden, feed_forward_columns(shape.hidden, share), shape.bias,
            shape.down_deviation, share, store) {}

ops::Dropout FeedForward::dropout(const Context& context) const { return row_dropout(context, shape_.dropout, name_); }

Tensor FeedForward::forward(const Tensor& x, const Tensor& residual, Saved& saved, Context& context) const {
  saved.x = keep(x);
  compute_again(saved, context);  // for the first time
  const Tensor y = down_.forward("feed-forward down", saved.active, context, name_.c_str());
  return ops::residual(context.runtime, residual, y, down_.bias(), dropout(context));
}

void FeedForward::forget(Saved& saved) const { saved.hidden = saved.active = {}; }

void FeedForward::compute_again(Saved& saved, Context& context) const {
  const Tensor all = enter(saved.x, context, name_.c_str());
  saved.active = keep(up_.forward_activation("feed-forward up", shape_.activation, all, saved.hidden, context));
  keep(saved.hidden);
}

Tensor FeedForward::backward(const Tensor& dy, const Saved& saved, Context& context, Tensor* sum_of_dy) const {
  Runtime& runtime = context.runtime;
  const Tensor dbranch = down_.backward_residual(dy, dropout(context), sum_of_dy, context);
  const Tensor dsum = leave_backward(dbranch, context, name_.c_str());
  const Tensor dhidden =
      down_.backward_input_activation("feed-forward down", shape_.activation, dsum, saved.hidden, context);
  compute_weight_gradient(context, [this, dsum, active = saved.active](Context& later) {
    down_.backward_weight("feed-forward down", dsum, active, later);
  });
  const PendingTensor dx =
      enter_backward(up_.backward_input("feed-forward up", dhidden, context), context, name_.c_str());
  compute_weight_gradient(context, [this, dhidden, x = saved.x](Context& later) {
    up_.backward_weight("feed-forward up", dhidden, enter(x, later, name_.c_str()), later);
  });
  return dx.wait(runtime);
}

}  // namespace choir
