#include "framework/checkpoint/writer.h"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <thread>

#include "framework/checkpoint/rank_file.h"
#include "framework/checkpoint/reason.h"
#include "framework/checkpoint/tensor_digest.h"
#include "framework/core/error.h"

namespace choir {
namespace {

namespace fs = std::filesystem;

void check_piece(const Piece& piece) {
  if (!is_tensor_shape(piece.shape) || !lies_inside(piece.extent(), piece.shape) || (piece.count() > 0 && !piece.data))
    throw Error({.what = fmt::format(
                     "tensor '{}' of shape {}: rows {} to {}, columns {} to {}, elements {} to {} do not lie inside it",
                     piece.name, to_string(piece.shape), piece.row_begin, piece.row_end, piece.column_begin,
                     piece.column_end, piece.begin, piece.end)});
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::string folder, const CheckpointConfig& config, Communicator& world, Stream& io,
                                   std::function<void(std::int64_t step)> published)
    : folder_(std::move(folder)), published_(std::move(published)), ranks_(world), io_(io) {
  const auto open_folder = [&] {  // no rank writes before rank 0 has called sweep()
    std::error_code error;
    fs::create_directories(folder_, error);
    const std::string problem = error ? error.message() : sweep(folder_);
    if (!problem.empty()) throw Error({.what = "cannot keep checkpoints in " + folder_, .why = problem});
    retention_ = std::make_shared<Retention>(folder_, config);
  };
  ranks_.on_rank_0(open_folder, "checkpoint.folder");
}

CheckpointWriter::~CheckpointWriter() {
  try {
    io_.synchronize();
  } catch (const std::exception&) {  // of other work on the same thread; the code that enqueued it has to check
  }
}

std::string CheckpointWriter::path() const { return folder_ + "/" + step_name(step_); }

void CheckpointWriter::start(std::function<void(Job&)> work) {
  job_->done = false;
  io_.enqueue([job = job_, work = std::move(work)] {
    try {
      if (job->error.empty()) work(*job);
    } catch (const std::exception& failure) {
      job->error = reason_of(failure);
    }
    job->done = true;
  });
}

std::optional<SaveOutcome> CheckpointWriter::save(std::int64_t step, const std::vector<Piece>& pieces,
                                                  const State& state) {
  std::optional<SaveOutcome> before = finish();
  step_ = step;
  state_ = state;
  job_ = std::make_shared<Job>();
  job_->pieces = pieces;
  try {
    std::int64_t count = 0;
    for (const Piece& piece : pieces) {
      check_piece(piece);
      count += piece.count();
    }
    const bool copies = io_.mode() == StreamMode::threaded;
    if (copies && count > staging_count_) {
      staging_ = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(count));
      staging_count_ = count;
    }
    float* copy = staging_.get();
    for (Piece& piece : job_->pieces) {
      job_->digests.push_back(digest_and_copy(piece, copies ? copy : nullptr));
      if (!copies) continue;
      piece.data = copy;
      copy += piece.count();
    }
  } catch (const std::exception& failure) {  // the other ranks get it at the next poll
    job_->error = reason_of(failure);
  }
  phase_ = Phase::writing;
  start([folder = temporary(), step, rank = ranks_.rank(), ranks = ranks_.size()](Job& job) {
    fs::create_directories(folder);
    Manifest report = write_rank_file(folder, rank, job.pieces, job.digests);
    report.step = step;
    report.ranks = ranks;
    job.report = to_text(report);
  });
  return before;
}

// The error of any rank fails the save; without one, rank 0 gets all reports and publishes.
void CheckpointWriter::start_publishing() {
  const std::string mine = job_->error.empty() ? "" : fmt::format("rank {}: {}", ranks_.rank(), job_->error);
  const std::string error = ranks_.first(mine, "checkpoint.written");
  std::vector<std::string> reports;
  if (error.empty()) reports = ranks_.gather(job_->report, "checkpoint.reports");
  phase_ = Phase::publishing;
  if (ranks_.rank() != 0) return;
  job_->error = "";
  start([error, reports, folder = folder_, target = temporary(), step = step_, state = state_, retention = retention_,
         published = published_](Job& job) {
    try {
      if (!error.empty()) throw std::runtime_error(error);
      std::vector<Manifest> parts;
      for (const std::string& report : reports) parts.push_back(parse_manifest(report));
      Manifest whole = merge(std::move(parts));
      whole.step = step;
      whole.ranks = static_cast<int>(reports.size());
      whole.state = state;
      publish(folder, target, std::move(whole));
    } catch (const std::exception&) {
      job.warning = remove_folder(target);
      throw;
    }
    try {
      if (published) published(step);
    } catch (const std::exception& failure) {
      job.warning = reason_of(failure) + "; ";
    }
    retention->add(step, state);
    job.warning += retention->prune();
  });
}

SaveOutcome CheckpointWriter::end() {
  SaveOutcome outcome{.step = step_, .path = path()};
  const std::string error = ranks_.broadcast(job_->error, 0, "checkpoint.outcome");
  const std::string warning = ranks_.broadcast(job_->warning, 0, "checkpoint.outcome");
  outcome.saved = error.empty();
  outcome.text = error + (error.empty() || warning.empty() ? "" : "; ") + warning;
  phase_ = Phase::idle;
  job_.reset();
  return outcome;
}

std::optional<SaveOutcome> CheckpointWriter::poll() {
  while (saving() && ranks_.largest(job_->done ? 0 : 1, "checkpoint.poll") == 0) {
    if (phase_ == Phase::publishing) return end();
    start_publishing();
  }
  return std::nullopt;
}

// No rank waits inside a call for the disk of another: the watchdog would take that for a hang.
std::optional<SaveOutcome> CheckpointWriter::finish() {
  constexpr std::chrono::milliseconds look(1), between_polls(200);
  const auto start_of_wait = std::chrono::steady_clock::now();
  std::optional<SaveOutcome> outcome;
  while (saving() && !outcome) {
    const auto next_poll = std::chrono::steady_clock::now() + between_polls;
    while (!job_->done && std::chrono::steady_clock::now() < next_poll) std::this_thread::sleep_for(look);
    outcome = poll();
  }
  if (outcome)
    outcome->waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_of_wait).count();
  return outcome;
}

}  // namespace choir
