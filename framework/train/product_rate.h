// The machine's own matrix-product rate, with which the speed of a training step is compared.
#pragma once

#include <vector>

#include "framework/core/ledger.h"
#include "framework/core/runtime.h"

namespace choir {

/// Random numbers from -1 to 1, the same few thousand again and again: a GPU multiplies constants faster, since bits
/// that do not change take no power. Their number is prime, so that rows differ.
void fill_at_random(Runtime&, const Tensor& x);

/// Floating-point operations a second of plain products (no bias, no sum) of the given shapes on this rank, weighted by
/// the operations of each in a step, on random numbers. Runs each shape for at most `seconds_each`, but at least three
/// times, and takes the median.
double product_rate(Runtime&, const std::vector<Ledger::Product>& products, double seconds_each);

}  // namespace choir
