// The only file that includes cudnn-frontend, which costs the compiler half a minute and a gigabyte.
//
// A shape is cut into parts and slices: kernels/cuda/cudnn_slices.h. Slices of one size share a graph.
#include "kernels/cuda/cudnn_attention.h"

#include <utility>

#ifdef CHOIR_CUDNN

#include <cudnn.h>
#include <cudnn_frontend.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/failure.h"

namespace choir::kernels::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;

// The tensors of a graph, by the number that identifies each when it runs.
enum Uid : std::int64_t { q_uid = 1, k_uid, v_uid, out_uid, lse_uid, dout_uid, dq_uid, dk_uid, dv_uid };

struct Graph {
  fe::graph::Graph graph{};
  std::string refusal{}, engine{};
  std::int64_t workspace_bytes = 0;
};

struct Call {
  AttentionPart part;
  Graph* graph;
};

struct PlannedCalls {
  CudnnAttentionPlan plan{};
  std::vector<Call> calls{};
};

// Everything that a graph or a plan depends on.
using Key = std::array<std::int64_t, 22>;
Key key(AttentionPass pass, const AttentionShape& s, std::int64_t lse_heads) {
  return {static_cast<std::int64_t>(pass),
          s.batch,
          s.q_length,
          s.kv_length,
          s.heads,
          s.kv_heads,
          s.head_width,
          s.group_size,
          s.group_offset,
          s.q_stride,
          s.k_stride,
          s.v_stride,
          s.out_stride,
          s.band.first,
          s.band.last,
          s.band.prefix_queries,
          s.band.prefix_keys,
          std::bit_cast<std::int64_t>(s.scale),
          std::bit_cast<std::int64_t>(s.score.soft_cap),
          s.score.alibi_heads,
          s.documents.separate,
          lse_heads};
}

// cuDNN's bounds count from here: key - query if the last query is at the last key.
std::int64_t diagonal(const AttentionShape& s) { return s.kv_length - s.q_length; }

// The refusals that need no call to cuDNN.
std::string own_refusal(const AttentionShape& s) {
  if (s.score.soft_cap > 0) return "scores with a soft cap are built into Choir's kernels only";
  if (s.score.alibi_heads > 0) return "scores with ALiBi are built into Choir's kernels only";
  if (s.documents.separate) return "separate documents are built into Choir's kernels only";
  if (s.dropout.p > 0) return "dropout of attention is built into Choir's kernels only";
  const VisiblePairs<std::int64_t> pairs = visible_pairs(s);
  if (pairs.prefix_queries > 0) return "masks with a prefix are built into Choir's kernels only";
  if (pairs.keys_of(0).empty() || pairs.keys_of(s.q_length - 1).empty())
    return "some queries see no key, for which cuDNN does not promise zeros";
  if ((pairs.limited_before() || pairs.limited_after()) && s.q_length > s.kv_length)
    return "cuDNN's masks need at least as many keys as queries";
  if (pairs.first > diagonal(s) || pairs.last < diagonal(s))
    return "cuDNN's masks contain the diagonal that ends at the last query and the last key, and this band does not";
  if (s.head_width % 8 != 0 || s.q_stride % 8 != 0 || s.k_stride % 8 != 0 || s.v_stride % 8 != 0 ||
      s.out_stride % 8 != 0)
    return "cuDNN needs heads and rows of a multiple of 16 bytes";
  if (even_parts(s).back().kv_head_begin + even_parts(s).back().kv_heads != s.kv_heads)
    return "some key/value heads are read by no query head";
  return "";
}

// The first reason in cuDNN's own log of errors, as " (...)"; empties that log. The reasons after it only say which
// functions returned the first one.
std::string logged_reason() {
  char log[4096] = {};
  cudnnGetLastErrorString(log, sizeof(log));
  const std::string text = log, mark = "Reason: ";
  const std::size_t begin = text.find(mark);
  if (begin == std::string::npos) return "";
  return " (" + text.substr(begin + mark.size(), text.find('\n', begin) - begin - mark.size()) + ")";
}

std::string words(const std::string& step, fe::error_t error) {
  std::string message = error.get_message();
  message.erase(message.find_last_not_of(" _\n") + 1);  // the graph's name, whose letters cuDNN hides
  return "cuDNN refuses (" + step + "): " + message + logged_reason();
}

// [batch, heads, length, head_width] with the strides of memory: tokens outside heads.
Tensor_attributes tensor(const char* name, Uid uid, std::int64_t batch, std::int64_t heads, std::int64_t length,
                         std::int64_t head_width, std::int64_t token_stride) {
  return Tensor_attributes()
      .set_name(name)
      .set_uid(uid)
      .set_dim({batch, heads, length, head_width})
      .set_stride({length * token_stride, head_width, token_stride, 1});
}

// A slice of `lse_heads` heads: [batch, heads, length, 1].
Tensor_attributes lse_tensor(const AttentionShape& s, std::int64_t lse_heads) {
  return Tensor_attributes()
      .set_name("lse")
      .set_uid(lse_uid)
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({s.batch, s.heads, s.q_length, 1})
      .set_stride({lse_heads * s.q_length, s.q_length, 1, 1});
}

void describe_output(Tensor_attributes& output, const Tensor_attributes& like) {
  output.set_output(true).set_uid(like.get_uid()).set_dim(like.get_dim()).set_stride(like.get_stride());
}

// With position = query + diagonal, cuDNN's left bound w allows key > position - w, its right bound r allows
// key <= position + r. This diagonal is its bottom right, which for equal lengths is its top left, which more engines
// support.
template <class Attributes>
void set_mask_and_scale(Attributes& attributes, const AttentionShape& s) {
  attributes.set_attn_scale(static_cast<float>(s.scale));
  attributes.set_diagonal_alignment(s.q_length == s.kv_length ? fe::DiagonalAlignment_t::TOP_LEFT
                                                              : fe::DiagonalAlignment_t::BOTTOM_RIGHT);
  const VisiblePairs<std::int64_t> pairs = visible_pairs(s);
  if (pairs.limited_before()) attributes.set_diagonal_band_left_bound(static_cast<int>(diagonal(s) - pairs.first + 1));
  if (pairs.limited_after()) attributes.set_diagonal_band_right_bound(static_cast<int>(pairs.last - diagonal(s)));
}

void add_operation(fe::graph::Graph& graph, AttentionPass pass, const AttentionShape& s, std::int64_t lse_heads,
                   bool deterministic) {
  const auto of_queries = [&](const char* name, Uid uid, std::int64_t stride) {
    return tensor(name, uid, s.batch, s.heads, s.q_length, s.head_width, stride);
  };
  const auto of_keys = [&](const char* name, Uid uid, std::int64_t stride) {
    return tensor(name, uid, s.batch, s.kv_heads, s.kv_length, s.head_width, stride);
  };
  const auto q = graph.tensor(of_queries("q", q_uid, s.q_stride));
  const auto k = graph.tensor(of_keys("k", k_uid, s.k_stride));
  const auto v = graph.tensor(of_keys("v", v_uid, s.v_stride));
  if (pass == AttentionPass::forward) {
    auto attributes = fe::graph::SDPA_attributes().set_name("attention forward").set_generate_stats(true);
    set_mask_and_scale(attributes, s);
    const auto [out, lse] = graph.sdpa(q, k, v, attributes);
    describe_output(*out, of_queries("out", out_uid, s.out_stride));
    describe_output(*lse, lse_tensor(s, lse_heads));
    lse->set_data_type(fe::DataType_t::FLOAT);
  } else {
    const auto out = graph.tensor(of_queries("out", out_uid, s.out_stride));
    const auto dout = graph.tensor(of_queries("dout", dout_uid, s.out_stride));
    const auto lse = graph.tensor(lse_tensor(s, lse_heads));
    auto attributes = fe::graph::SDPA_backward_attributes().set_name("attention backward");
    attributes.set_deterministic_algorithm(deterministic);
    set_mask_and_scale(attributes, s);
    const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, lse, attributes);
    describe_output(*dq, of_queries("dq", dq_uid, s.q_stride));
    describe_output(*dk, of_keys("dk", dk_uid, s.k_stride));
    describe_output(*dv, of_keys("dv", dv_uid, s.v_stride));
  }
}

// What a call reads and writes: pointers to the whole tensors, moved to the beginning of the part.
using Pointers = std::unordered_map<std::int64_t, void*>;

void add_queries(Pointers& pointers, Uid uid, const bf16* data, const AttentionShape& s, std::int64_t stride,
                 const AttentionPart& part) {
  pointers[uid] = const_cast<bf16*>(data) + part.batch_begin * s.q_length * stride + part.head_begin * s.head_width;
}

void add_keys(Pointers& pointers, Uid uid, const bf16* data, const AttentionShape& s, std::int64_t stride,
              const AttentionPart& part) {
  pointers[uid] = const_cast<bf16*>(data) + part.batch_begin * s.kv_length * stride + part.kv_head_begin * s.head_width;
}

void add_lse(Pointers& pointers, const float* data, const AttentionShape& s, const AttentionPart& part) {
  pointers[lse_uid] = const_cast<float*>(data) + (part.batch_begin * s.heads + part.head_begin) * s.q_length;
}

}  // namespace

CudnnLibrary cudnn_library() {
  const std::size_t version = cudnnGetVersion();
  if (version == 0) return {.in_build = true, .problem = "cuDNN cannot be used" + logged_reason()};
  return {.in_build = true,
          .version = std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
                     std::to_string(version % 100)};
}

struct CudnnAttention::State {
  CudnnAttentionOptions options;
  cudnnHandle_t handle = nullptr;
  std::string no_handle{};  // why it cannot be made
  std::shared_ptr<fe::DeviceProperties> described_gpu{};
  std::map<Key, Graph> graphs{};
  std::map<Key, PlannedCalls> planned{};

  explicit State(CudnnAttentionOptions given) : options(std::move(given)) {}
  ~State() {
    graphs.clear();  // before the handle they were made with
    if (handle) cudnnDestroy(handle);
  }

  std::string open();
  Graph& graph(AttentionPass pass, const AttentionShape& part, std::int64_t lse_heads);
  std::string build(Graph& built, AttentionPass pass, const AttentionShape& part, std::int64_t lse_heads);
  std::string add_calls(PlannedCalls& planned_calls, AttentionPass pass, const AttentionShape& shape,
                        const AttentionPart& part);
  const PlannedCalls& plan(AttentionPass pass, const AttentionShape& shape);
  void run(CUstream_st* stream, const Call& call, Pointers& pointers, void* workspace);
};

// cuDNN's handle, or the description of a GPU, made when first needed. Returns why it cannot be made.
std::string CudnnAttention::State::open() {
  if (handle || described_gpu || !no_handle.empty()) return no_handle;
  if (options.described_gpu.empty()) {
    if (const cudnnStatus_t status = cudnnCreate(&handle); status != CUDNN_STATUS_SUCCESS)
      no_handle = std::string("cudnnCreate: ") + cudnnGetErrorString(status) + logged_reason();
  } else {
    described_gpu = std::make_shared<fe::DeviceProperties>();
    const std::string& text = options.described_gpu;
    if (const fe::error_t error = described_gpu->deserialize({text.begin(), text.end()}); error.is_bad())
      no_handle = words("description of the GPU", error);
  }
  return no_handle;
}

std::string CudnnAttention::State::build(Graph& built, AttentionPass pass, const AttentionShape& part,
                                         std::int64_t lse_heads) {
  if (const std::string refusal = open(); !refusal.empty()) return refusal;
  logged_reason();  // of earlier graphs
  fe::graph::Graph& graph = built.graph;
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  if (described_gpu) graph.set_device_properties(described_gpu);
  add_operation(graph, pass, part, lse_heads, options.deterministic);
  if (const auto error = graph.validate(); error.is_bad()) return words("validate", error);
  // Without a handle the plan is for the described GPU.
  if (const auto error = handle ? graph.build_operation_graph(handle) : graph.build_operation_graph(); error.is_bad())
    return words("operation graph", error);
  if (const auto error = graph.create_execution_plans({fe::HeurMode_t::A}); error.is_bad())
    return words("heuristics", error);
  if (const auto error = graph.check_support(); error.is_bad()) return words("support", error);
  if (const auto error = graph.build_plans(); error.is_bad()) return words("plan", error);
  if (const auto error = graph.get_plan_name(built.engine); error.is_bad()) return words("name of the plan", error);
  if (const auto error = graph.get_workspace_size(built.workspace_bytes); error.is_bad())
    return words("workspace", error);
  return "";
}

Graph& CudnnAttention::State::graph(AttentionPass pass, const AttentionShape& part, std::int64_t lse_heads) {
  const auto [place, is_new] = graphs.try_emplace(key(pass, part, lse_heads));
  if (is_new) place->second.refusal = build(place->second, pass, part, lse_heads);
  return place->second;
}

// Cuts a part into the largest slices whose workspace is within the limit. If that is not possible, returns why.
std::string CudnnAttention::State::add_calls(PlannedCalls& planned_calls, AttentionPass pass,
                                             const AttentionShape& shape, const AttentionPart& part) {
  const double limit = static_cast<double>(options.workspace_limit_bytes);
  double bytes_per_head = 0;  // of the workspace, known from the whole part: no slice that cannot fit is compiled
  std::int64_t least = 0;
  for (const AttentionPart& size : slice_sizes(part)) {
    if (bytes_per_head * static_cast<double>(size.batch * size.heads) > limit) continue;
    Graph& slice = graph(pass, shape_of(shape, size), shape.heads);
    if (!slice.refusal.empty()) return slice.refusal;
    least = slice.workspace_bytes;
    bytes_per_head = static_cast<double>(least) / static_cast<double>(size.batch * size.heads);
    if (least > options.workspace_limit_bytes) continue;
    for (std::int64_t batch = 0; batch < part.batch; batch += size.batch) {
      for (std::int64_t kv_head = 0; kv_head < part.kv_heads; kv_head += size.kv_heads) {
        const std::int64_t head = kv_head / size.kv_heads * size.heads;
        planned_calls.calls.push_back({.part = {batch, size.batch, part.head_begin + head, size.heads,
                                                part.kv_head_begin + kv_head, size.kv_heads},
                                       .graph = &slice});
      }
    }
    planned_calls.plan.workspace_bytes = std::max(planned_calls.plan.workspace_bytes, slice.workspace_bytes);
    return "";
  }
  const std::int64_t group = part.heads / part.kv_heads;
  return "cuDNN's workspace would be " +
         std::to_string(static_cast<std::int64_t>(bytes_per_head * static_cast<double>(group)) >> 20) +
         " MiB for the " + std::to_string(group) + " query heads of one key/value head; the limit is " +
         std::to_string(options.workspace_limit_bytes >> 20) + " MiB";
}

const PlannedCalls& CudnnAttention::State::plan(AttentionPass pass, const AttentionShape& shape) {
  const auto [place, is_new] = planned.try_emplace(key(pass, shape, shape.heads));
  PlannedCalls& result = place->second;
  if (!is_new) return result;
  std::string& refusal = result.plan.refusal;
  refusal = own_refusal(shape);
  if (refusal.empty()) {
    for (const AttentionPart& part : even_parts(shape)) {
      if (refusal = add_calls(result, pass, shape, part); !refusal.empty()) break;
    }
  }
  if (refusal.empty()) {
    result.plan.engine = result.calls.front().graph->engine;
    result.plan.calls = static_cast<int>(result.calls.size());
  } else {
    result.calls.clear();
    result.plan.workspace_bytes = 0;
  }
  return result;
}

void CudnnAttention::State::run(CUstream_st* stream, const Call& call, Pointers& pointers, void* workspace) {
  for (const auto& [uid, pointer] : pointers) {
    if (std::bit_cast<std::uintptr_t>(pointer) % 16 != 0 && uid != lse_uid)
      throw Failure("cuDNN attention", "a tensor that does not begin on a multiple of 16 bytes");
  }
  if (const cudnnStatus_t status = cudnnSetStream(handle, stream); status != CUDNN_STATUS_SUCCESS)
    throw Failure("cudnnSetStream", cudnnGetErrorString(status));
  if (const auto error = call.graph->graph.execute(handle, pointers, workspace); error.is_bad())
    throw Failure("cuDNN attention (" + call.graph->engine + ")", words("execution", error));
}

CudnnAttention::CudnnAttention(CudnnAttentionOptions options) : state_(new State(std::move(options))) {}
CudnnAttention::~CudnnAttention() = default;

const CudnnAttentionPlan& CudnnAttention::plan(AttentionPass pass, const AttentionShape& shape) {
  return state_->plan(pass, shape).plan;
}

void CudnnAttention::forward(CUstream_st* stream, const AttentionForward<bf16>& a) {
  const AttentionShape& s = a.shape;
  for (const Call& call : state_->plan(AttentionPass::forward, s).calls) {
    Pointers pointers;
    add_queries(pointers, q_uid, a.q, s, s.q_stride, call.part);
    add_keys(pointers, k_uid, a.k, s, s.k_stride, call.part);
    add_keys(pointers, v_uid, a.v, s, s.v_stride, call.part);
    add_queries(pointers, out_uid, a.out, s, s.out_stride, call.part);
    add_lse(pointers, a.lse, s, call.part);
    state_->run(stream, call, pointers, a.workspace);
  }
}

void CudnnAttention::backward(CUstream_st* stream, const AttentionBackward<bf16>& a) {
  const AttentionShape& s = a.shape;
  for (const Call& call : state_->plan(AttentionPass::backward, s).calls) {
    Pointers pointers;
    add_queries(pointers, q_uid, a.q, s, s.q_stride, call.part);
    add_keys(pointers, k_uid, a.k, s, s.k_stride, call.part);
    add_keys(pointers, v_uid, a.v, s, s.v_stride, call.part);
    add_queries(pointers, out_uid, a.out, s, s.out_stride, call.part);
    add_queries(pointers, dout_uid, a.dout, s, s.out_stride, call.part);
    add_lse(pointers, a.lse, s, call.part);
    add_queries(pointers, dq_uid, a.dq, s, s.q_stride, call.part);
    add_keys(pointers, dk_uid, a.dk, s, s.k_stride, call.part);
    add_keys(pointers, dv_uid, a.dv, s, s.v_stride, call.part);
    state_->run(stream, call, pointers, a.workspace);
  }
}

}  // namespace choir::kernels::cuda

#else  // built without cuDNN

#include "kernels/cuda/failure.h"

namespace choir::kernels::cuda {

static constexpr const char* absent = "this build has no cuDNN (cudnn.h, libcudnn and the headers of cudnn-frontend)";

CudnnLibrary cudnn_library() { return {.problem = absent}; }

struct CudnnAttention::State {
  CudnnAttentionPlan refused{.refusal = absent};
};

CudnnAttention::CudnnAttention(CudnnAttentionOptions) : state_(new State) {}
CudnnAttention::~CudnnAttention() = default;

const CudnnAttentionPlan& CudnnAttention::plan(AttentionPass, const AttentionShape&) { return state_->refused; }

void CudnnAttention::forward(CUstream_st*, const AttentionForward<bf16>&) {
  throw Failure("cuDNN attention forward", state_->refused.refusal);
}

void CudnnAttention::backward(CUstream_st*, const AttentionBackward<bf16>&) {
  throw Failure("cuDNN attention backward", state_->refused.refusal);
}

}  // namespace choir::kernels::cuda

#endif
