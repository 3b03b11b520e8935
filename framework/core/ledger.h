// What a run did: floating-point operations and bytes by operation, messages by mesh axis. On device `count` this is
// the whole result; on a real device with timing it is the profile. One table, so the two cannot drift apart.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace choir {

/// The least work an operation can do: its floating-point operations, and each operand read or written once.
struct Cost {
  double flops = 0;
  double bytes = 0;
};

class Ledger {
 public:
  struct Operation {
    std::string name;
    Cost cost;
    std::int64_t calls = 0;
    double seconds = 0;  ///< 0 unless timed
  };
  struct Traffic {
    std::string axis, verb;
    std::int64_t messages = 0;
    double bytes = 0;  ///< of the tensors given to the verb on this rank
  };
  /// A matrix product's shape, for measuring the machine's own rate at the model's own shapes.
  struct Product {
    std::int64_t m, n, k;
    bool transpose_a, transpose_b, accumulate, bf16_in, bf16_out;
    std::int64_t calls = 0;
    bool same_shape(const Product& o) const {
      return m == o.m && n == o.n && k == o.k && transpose_a == o.transpose_a && transpose_b == o.transpose_b &&
             accumulate == o.accumulate && bf16_in == o.bf16_in && bf16_out == o.bf16_out;
    }
  };

  bool enabled = false;  ///< off: every call returns at once

  void add(const char* name, Cost cost, double seconds);
  /// The same of an operation that is not over: settle(), to be called when it is, asks for its time.
  void add_later(const char* name, Cost cost, std::function<double()> seconds);
  void settle();
  void add_message(const std::string& axis, const char* verb, double bytes);
  void add_product(const Product& product);
  void clear();

  const std::vector<Operation>& operations() const { return operations_; }
  const std::vector<Traffic>& traffic() const { return traffic_; }
  const std::vector<Product>& products() const { return products_; }
  double total_flops() const;

 private:
  std::vector<Operation> operations_;
  std::vector<std::function<void()>> later_;
  std::vector<Traffic> traffic_;
  std::vector<Product> products_;
};

}  // namespace choir
