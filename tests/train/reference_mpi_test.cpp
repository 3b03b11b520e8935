// Losses and gradients that PyTorch computed in double (tests/reference/README.md), against ours in f32 from the same
// weights, on one rank and in tensor- and data-split layouts.
//
// Bounds. Gradients and loss: framework/train/comparison.h; only our side errs, which the bound for two sides covers.
// Losses while training: an error of the weights that gradients of relative error d have caused moves the loss by
// less than d times what training has moved it, which is less than the loss itself; so the loss's own bound plus d.
// AdamW turns gradients that are zero but for rounding into whole steps, but the loss does not depend on those weights.
//
// The batch of the file is repeated until 12 sequences are there for the data ranks to share: the mean is the same.
// Both divide by the targets that are not -1.
#include <gtest/gtest.h>

#include <filesystem>

#include "framework/data/hdf5_file.h"
#include "framework/data/image.h"
#include "tests/train/small_run.h"

namespace choir::tests {
namespace {

class ReferenceFile {
 public:
  explicit ReferenceFile(const std::string& name)
      : file_(open_hdf5(std::string(CHOIR_SOURCE_DIR) + "/tests/reference/" + name + ".h5")) {}

  std::string text(const char* attribute) const { return read_string_attribute(file_, attribute); }

  std::vector<double> numbers(const char* attribute) const {
    const Hdf5Handle handle(H5Aopen(file_, attribute, H5P_DEFAULT), H5Aclose, "H5Aopen");
    const Hdf5Handle space(H5Aget_space(handle), H5Sclose, "H5Aget_space");
    std::vector<double> values(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
    hdf5_check(H5Aread(handle, H5T_NATIVE_DOUBLE, values.data()), "H5Aread");
    return values;
  }

  template <class T>
  std::vector<T> dataset(const std::string& path) const {
    const Hdf5Handle handle(H5Dopen2(file_, path.c_str(), H5P_DEFAULT), H5Dclose, "H5Dopen2");
    const Hdf5Handle space(H5Dget_space(handle), H5Sclose, "H5Dget_space");
    std::vector<T> values(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
    const hid_t type = std::is_same_v<T, double>  ? H5T_NATIVE_DOUBLE
                       : std::is_same_v<T, float> ? H5T_NATIVE_FLOAT
                                                  : H5T_NATIVE_INT32;
    hdf5_check(H5Dread(handle, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "H5Dread");
    return values;
  }

  bool has(const std::string& name) const { return H5Lexists(file_, name.c_str(), H5P_DEFAULT) > 0; }

  std::size_t parameters() const {
    H5G_info_t info;
    const Hdf5Handle group(H5Gopen2(file_, "weights", H5P_DEFAULT), H5Gclose, "H5Gopen2");
    hdf5_check(H5Gget_info(group, &info), "H5Gget_info");
    return info.nlinks;
  }

 private:
  Hdf5Handle file_;
};

void load_weights(Trainer& trainer, const ReferenceFile& file) {
  Runtime& runtime = trainer.runtime();
  Shards& shards = trainer.shards();
  for (const Parameter& p : trainer.parameters().parameters()) {
    const std::vector<float> whole = file.dataset<float>("weights/" + p.name);
    ASSERT_EQ(static_cast<std::int64_t>(whole.size()), p.global_count()) << p.name;
    for (const ParameterPart& part : parts_in(trainer.parameters(), shards.updated(), false)) {
      if (part.parameter != &p) continue;
      std::vector<float> values;
      for (std::int64_t i = part.begin; i < part.end; ++i)
        values.push_back(whole[static_cast<std::size_t>(global_index(p, i))]);
      write(runtime, values.data(), shards.at(part.flat(), &Bucket::master));
    }
  }
  shards.round(runtime);
  Context context = trainer.context();
  shards.publish(context);
}

std::vector<std::string> reference_files() {
  if (device_is_simulated()) return {"gpt", "llama", "encoder_decoder", "aligned_sources"};
  return {"gpt",
          "llama",
          "five_heads",
          "window",
          "gelu_erf",
          "no_positions",
          "encoder",
          "encoder_window",
          "vision",
          "class_token",
          "soft_cap",
          "alibi",
          "documents",
          "encoder_documents",
          "encoder_decoder",
          "encoder_decoder_window",
          "classifier",
          "learned_2d",
          "convolution",
          "chosen_heads",
          "linear",
          "aligned_sources",
          "delta",
          "linear_encoder",
          "linear_pairs",
          "two_sources",
          "chosen_pairs",
          "delta_encoder"};
}

/// `layout` with its tensor ranks as data ranks.
Layout as_data_ranks(Layout layout) {
  layout.name += ", of data ranks";
  layout.data *= layout.tensor;
  layout.tensor = 1;
  layout.sequence = false;
  if (batch / layout.data % std::max<std::int64_t>(layout.micro_batch, 1) != 0) layout.micro_batch = 1;
  return layout;
}

class Reference : public ::testing::TestWithParam<std::string> {};

TEST_P(Reference, LossGradientsAndTrainingAreThoseOfPytorch) {
  if (device_is_simulated() && world_size() > 1 && GetParam() == "aligned_sources")
    GTEST_SKIP() << "slow there; its layouts are tried on the CPU";
  if (world_size() % 2 == 0 && GetParam() == "chosen_pairs") GTEST_SKIP() << "slow; three ranks try it";
  const ReferenceFile file(GetParam());
  const auto inputs = file.dataset<std::int32_t>("tokens/inputs"),
             targets = file.dataset<std::int32_t>("tokens/targets");
  const auto begins = file.has("tokens/document_begins") ? file.dataset<std::int32_t>("tokens/document_begins")
                                                         : std::vector<std::int32_t>{};
  const auto sources =
      file.has("tokens/source") ? file.dataset<std::int32_t>("tokens/source") : std::vector<std::int32_t>{};
  const ModelConfig model = parse_config(file.text("config"), GetParam()).model;
  const std::size_t targets_each = static_cast<std::size_t>(model.targets_of_sequence());
  const std::size_t samples = targets.size() / targets_each, inputs_each = inputs.size() / samples;
  const ReadSample read = [&](std::int64_t index, const Sample& sample) {
    const std::size_t i = static_cast<std::size_t>(index) % samples;
    const auto of = [i](const std::vector<std::int32_t>& values, std::size_t each) {
      return std::span(values).subspan(i * each, each);
    };
    std::ranges::copy(of(targets, targets_each), sample.targets.begin());
    if (model.family != ModelFamily::vision) {
      std::ranges::copy(of(inputs, inputs_each), sample.inputs.begin());
    } else {
      const auto of_sample = of(inputs, inputs_each);
      to_patches(model, std::vector<float>(of_sample.begin(), of_sample.end()), sample.patches);
    }
    std::ranges::copy(of(sources, sample.source.size()), sample.source.begin());
    if (!sample.documents.empty()) {
      const auto of_sample = of(begins, inputs_each);
      for (std::size_t position = 0, end = 0; position < inputs_each; ++position) {
        for (end = std::max(end, position); end < inputs_each && of_sample[end] == of_sample[position];) ++end;
        sample.documents[position] = {of_sample[position], static_cast<std::int32_t>(end)};
      }
    }
    return std::int64_t{0};
  };
  const double loss_at_start = file.numbers("loss")[0];

  for (Layout layout : layouts(world_size(), model)) {
    Config config = parse_config(file.text("config") + file.text("sgd"), GetParam());
    // A rank without a head is refused: if there are more tensor ranks than heads, they split the data instead.
    if (config.model.attention.heads < layout.tensor) layout = as_data_ranks(layout);
    // So is a context rank without a head, if they share the heads.
    const bool shares_heads = layout.context_kind == ContextKind::heads;
    if (shares_heads && config.model.attention.heads < layout.tensor * layout.context)
      layout.context_kind = ContextKind::ring;
    SCOPED_TRACE(layout.name);
    config.train.batch = batch;
    config.parallel = parallel_of(layout);
    config.train.recompute = layout.recompute;
    const std::int64_t rows = config.train.batch * config.model.context;
    const double bound = rounding_bound(config.model, rows, DType::f32);
    const double error = loss_at_start * bound;

    const ParameterStore all = all_parameters(config.model);
    EXPECT_EQ(all.parameters().size(), file.parameters());
    Tensors gradients;
    for (const Parameter& p : all.parameters()) gradients[p.name] = file.dataset<double>("gradients/" + p.name);

    const auto expect_losses = [&](const char* which, const OptimizerConfig& optimizer, std::size_t steps) {
      config.optimizer = optimizer;
      SmallRun run(config);
      load_weights(run.trainer, file);
      const std::vector<double> expected = file.numbers(which);
      const auto expect_gradients = [&] {
        const double worst = expect_holds(compare("gradient of ", gradients, run.gradients(), bound));
        RecordProperty(layout.name + ": gradient error / bound", std::to_string(worst));
      };
      for (std::size_t s = 0; s < steps; ++s) {
        const auto step = static_cast<std::int64_t>(s) + 1;
        const double loss = run.trainer.step(step, read, s == 0 ? expect_gradients : std::function<void()>()).loss;
        EXPECT_NEAR(loss, expected[s], s == 0 ? error : error + bound * loss_at_start) << which << "[" << s << "]";
      }
    };
    // On simulated GPUs the first steps; parity_mpi_test.cpp has those of AdamW in layouts of several ranks.
    const bool simulated = device_is_simulated();
    const std::size_t all_steps = file.numbers("sgd_losses").size();
    expect_losses("sgd_losses", config.optimizer, !simulated ? all_steps : world_size() == 1 ? 3 : 2);
    if (simulated && world_size() > 1) continue;
    expect_losses("adamw_losses", parse_config(file.text("config") + file.text("adamw"), GetParam()).optimizer,
                  simulated ? 3 : all_steps);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Reference, ::testing::ValuesIn(reference_files()),
                         [](const auto& instance) { return instance.param; });

TEST(ReferenceFiles, EachIsACaseAbove) {
  if (device_is_simulated()) GTEST_SKIP() << "the CPU's tests look at them all";
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(CHOIR_SOURCE_DIR) + "/tests/reference"))
    files += entry.path().extension() == ".h5";
  EXPECT_EQ(files, reference_files().size());
}

}  // namespace
}  // namespace choir::tests
