#include "framework/core/ledger.h"

#include <algorithm>
#include <utility>

namespace choir {

void Ledger::add(const char* name, Cost cost, double seconds) {
  if (!enabled) return;
  auto found = std::find_if(operations_.begin(), operations_.end(), [&](const Operation& o) { return o.name == name; });
  if (found == operations_.end()) found = operations_.insert(found, Operation{.name = name, .cost = {}, .calls = 0});
  found->cost.flops += cost.flops;
  found->cost.bytes += cost.bytes;
  found->seconds += seconds;
  ++found->calls;
}

void Ledger::add_later(const char* name, Cost cost, std::function<double()> seconds) {
  later_.push_back(
      [this, name = std::string(name), cost, seconds = std::move(seconds)] { add(name.c_str(), cost, seconds()); });
}

void Ledger::settle() {
  for (const auto& add : later_) add();
  later_.clear();
}

void Ledger::add_message(const std::string& axis, const char* verb, double bytes) {
  if (!enabled) return;
  auto found = std::find_if(traffic_.begin(), traffic_.end(),
                            [&](const Traffic& t) { return t.axis == axis && t.verb == verb; });
  if (found == traffic_.end()) found = traffic_.insert(found, Traffic{.axis = axis, .verb = verb});
  ++found->messages;
  found->bytes += bytes;
}

void Ledger::add_product(const Product& product) {
  if (!enabled) return;
  auto found =
      std::find_if(products_.begin(), products_.end(), [&](const Product& p) { return p.same_shape(product); });
  if (found == products_.end()) found = products_.insert(found, product);
  ++found->calls;
}

void Ledger::clear() {
  operations_.clear();
  later_.clear();
  traffic_.clear();
  products_.clear();
}

double Ledger::total_flops() const {
  double total = 0;
  for (const Operation& o : operations_) total += o.cost.flops;
  return total;
}

}  // namespace choir
