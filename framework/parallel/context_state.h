// Linear attention over the context axis: ranks pass states, of a size that does not depend on the length.
//
// Each rank computes the state that each of its runs of positions would leave if it began at 0, and the sum of the
// run's log_decay, by the delta rule the product of its transitions. All ranks gather them and add them in the order of
// the positions (ops::carry_state()), so that each knows the states with which its runs begin. Backward gathers the
// gradients of states and adds them from the last position to the first. Tokens that see both sides have a second
// state, which goes the other way.
#pragma once

#include "framework/parallel/context.h"

namespace choir {

/// What backward reads.
struct StatesAttended {
  Tensor qkv;           // [N, 3 H E held]
  Tensor log_decay;     // [N, H held]
  Tensor log_rate;      // likewise; empty: not by the delta rule
  Tensor states[2][2];  // [B * H held, E * E]: by direction (to the right, to the left), what each run gets; empty: 0
  Tensor totals;  // [2 * context ranks, directions * B * H held (* E * E)]: of all runs, by rank and number; empty
                  // with one rank
};

/// qkv [N, 3 H E held], log_decay and log_rate [N, H held] -> out [N, H E held]. Of the spec only the heads are read,
/// and whether the band goes beyond the diagonal: then tokens see both sides. Collective over the context axis.
Tensor attend_to_states(const Tensor& qkv, const Tensor& log_decay, const Tensor& log_rate, const AttentionSpec&,
                        StatesAttended& saved, Context&);

struct StateGradients {
  Tensor dqkv, dlog_decay, dlog_rate;  // as qkv, log_decay and log_rate
};
StateGradients attend_to_states_backward(const Tensor& dout, const AttentionSpec&, const StatesAttended&, Context&);

}  // namespace choir
