#include "framework/ops/pool.h"

#include "framework/ops/dispatch.h"

namespace choir::ops {

Tensor pool(Runtime& runtime, const Tensor& x, const kernels::RowMap& rows, const kernels::Run& positions,
            double factor) {
  check(x.contiguous(), "pool: x [N, D] is contiguous");
  Tensor sums = runtime.empty({rows.sequences, x.width()}, accumulate_type(x.dtype()));
  with_type(x.dtype(), [&]<class T>() {
    const kernels::PoolForward<T> args{
        .shape = {.rows = x.rows(), .width = x.width(), .map = rows, .positions = positions, .factor = factor},
        .x = x.data<T>(),
        .sums = sums.data<Accumulate<T>>()};
    launch<T>(runtime, "pool forward", {.flops = static_cast<double>(x.count()), .bytes = bytes_of({x})},
              [args](auto device) { kernels::pool_forward(device, args); });
  });
  return sums;
}

Tensor pool_backward(Runtime& runtime, const Tensor& dsums, std::int64_t rows, const kernels::RowMap& map,
                     const kernels::Run& positions, double factor) {
  check(dsums.contiguous() && dsums.rows() == map.sequences, "pool backward: a row of dsums for each sequence");
  Tensor dx = runtime.empty({rows, dsums.width()}, dsums.dtype());
  with_type(dsums.dtype(), [&]<class T>() {
    const kernels::PoolBackward<T> args{
        .shape = {.rows = rows, .width = dsums.width(), .map = map, .positions = positions, .factor = factor},
        .dsums = dsums.data<T>(),
        .dx = dx.data<T>()};
    launch<T>(runtime, "pool backward", {.flops = static_cast<double>(dx.count()), .bytes = bytes_of({dx})},
              [args](auto device) { kernels::pool_backward(device, args); });
  });
  return dx;
}

}  // namespace choir::ops
