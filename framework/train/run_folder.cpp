#include "framework/train/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "framework/checkpoint/durable.h"
#include "framework/core/error.h"
#include "framework/core/host.h"
#include "framework/data/file.h"

namespace choir {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct MetricsLine {
  std::string text;
  Json json;
};

/// The lines that are whole JSON objects: a torn last line is not.
std::vector<MetricsLine> read_metrics(const std::string& path) {
  std::vector<MetricsLine> lines;
  std::error_code error;
  if (fs::status(path, error).type() == fs::file_type::not_found) return lines;
  const std::string all = read_text(path);
  for (std::size_t begin = 0; begin < all.size();) {
    const std::size_t end = std::min(all.find('\n', begin), all.size());
    MetricsLine line{all.substr(begin, end - begin), {}};
    line.json = Json::parse(line.text, nullptr, /*allow_exceptions=*/false);
    if (line.json.is_object()) lines.push_back(std::move(line));
    begin = end + 1;
  }
  return lines;
}

std::int64_t step_of(const MetricsLine& line) {
  const auto found = line.json.find("step");
  return found != line.json.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}

/// True if `path` names the file that is open as `descriptor`.
bool is_file(const std::string& path, int descriptor) {
  struct stat named = {}, opened = {};
  return stat(path.c_str(), &named) == 0 && fstat(descriptor, &opened) == 0 && named.st_ino == opened.st_ino &&
         named.st_dev == opened.st_dev;
}

/// "process 4711 on host a, since 2026-01-01T12:00:00Z", as run.lock says.
std::string describe_holder(int descriptor) {
  std::array<char, 512> text = {};
  const ssize_t count = pread(descriptor, text.data(), text.size(), 0);
  const auto json = Json::parse(text.data(), text.data() + std::max<ssize_t>(count, 0), nullptr, false);
  try {
    return fmt::format("process {} on host {}, since {}", json.at("process").get<std::int64_t>(),
                       json.at("host").get<std::string>(), json.at("started").get<std::string>());
  } catch (const Json::exception&) {
    return "a process that has not written its number yet";
  }
}

struct flock whole_file_for_writing() {
  struct flock request {};
  request.l_type = F_WRLCK;
  request.l_whence = SEEK_SET;
  return request;
}

ConfigError in_use(const RunFolder& folder, const std::string& holder) {
  return ConfigError(Problem{.what = "train.folder = " + folder.path + " is in use: " + holder,
                             .why = "two runs in one folder would mix their checkpoints and metrics",
                             .fix = "wait for that run, stop it, or set train.folder to another folder"});
}

}  // namespace

void RunFolder::create() const {
  for (const std::string& folder : {checkpoints(), logs()}) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) throw Error({.what = "cannot create " + folder, .why = error.message()});
  }
}

std::string new_run_id() {
  const auto time = std::chrono::system_clock::now().time_since_epoch().count();
  return fmt::format("{:x}-{:x}-{:08x}", time, getpid(), std::random_device()());
}

std::optional<RunRecord> read_record(const RunFolder& folder) {
  std::error_code error;
  if (fs::status(folder.record(), error).type() == fs::file_type::not_found) return std::nullopt;
  const std::string text = read_text(folder.record());
  try {
    const Json json = Json::parse(text);
    if (const auto version = json.at("version").get<std::int64_t>(); version != 1)
      throw Error(
          {.what = fmt::format("{} has format version {}, but this program reads version 1", folder.record(), version),
           .fix = "use the program that wrote it, or a newer one"});
    return RunRecord{.id = json.at("id").get<std::string>(), .published = json.at("published").get<std::int64_t>()};
  } catch (const Json::exception& damage) {
    throw Error({.what = folder.record() + " is damaged",
                 .why = damage.what(),
                 .fix = "remove it if `choir checkpoint list " + folder.path + "` shows all checkpoints of the run"});
  }
}

void publish_record(const RunFolder& folder, const RunRecord& record) {
  const Json json = {{"version", 1}, {"id", record.id}, {"published", record.published}, {"time", utc_now()}};
  publish_text(folder.record(), json.dump() + "\n");
}

std::int64_t last_published(const std::optional<RunRecord>& record, const std::vector<std::int64_t>& steps) {
  return std::max(record ? record->published : 0, steps.empty() ? 0 : steps.front());
}

void publish_text(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  std::error_code ignored;
  fs::remove(temporary, ignored);  // of a killed run
  try {
    write_text(temporary, text);
    publish_file(temporary, path);
  } catch (const Error&) {
    fs::remove(temporary, ignored);
    throw;
  }
}

std::string set_metrics_aside(const RunFolder& folder) {
  std::error_code error;
  const auto size = fs::file_size(folder.metrics(), error);
  if (error == std::errc::no_such_file_or_directory || (!error && size == 0)) return "";
  for (int number = 1;; ++number) {
    const std::string aside = fmt::format("{}/metrics.{}.jsonl", folder.path, number);
    if (fs::symlink_status(aside, error).type() != fs::file_type::not_found) continue;
    fs::copy_file(folder.metrics(), aside, error);
    if (error) throw Error({.what = "cannot copy " + folder.metrics() + " to " + aside, .why = error.message()});
    return aside;
  }
}

void cut_metrics(const RunFolder& folder, std::int64_t step) {
  const std::vector<MetricsLine> lines = read_metrics(folder.metrics());
  std::string kept;
  for (const MetricsLine& line : lines)
    if (step_of(line) <= step) kept += line.text + '\n';
  publish_text(folder.metrics(), kept);
}

bool has_evaluation(const RunFolder& folder, std::int64_t step) {
  const std::vector<MetricsLine> lines = read_metrics(folder.metrics());
  return std::any_of(lines.begin(), lines.end(), [step](const MetricsLine& line) {
    return step_of(line) == step && line.json.contains("held_out_loss");
  });
}

namespace {

/// The process that holds the lock of the folder; "" if none does.
std::string find_holder(const RunFolder& folder) {
  const int descriptor = open(folder.lock().c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return "";
  struct flock request = whole_file_for_writing();
  const bool held = fcntl(descriptor, F_OFD_GETLK, &request) == 0 && request.l_type != F_UNLCK;
  const std::string holder = held ? describe_holder(descriptor) : "";
  close(descriptor);
  return holder;
}

}  // namespace

bool wait_until_free(const RunFolder& folder, const LockWait& wait) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait.seconds);
  std::string told;
  for (std::string holder; !(holder = find_holder(folder)).empty(); told = holder) {
    if (wait.stopped()) return false;
    if (std::chrono::steady_clock::now() >= end) throw in_use(folder, holder);
    if (holder != told)
      wait.say(fmt::format("train.folder = {} is in use by {}: waiting for it, at most {:g} s (train.lock_wait)",
                           folder.path, holder, wait.seconds));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return true;
}

RunLock::RunLock(const RunFolder& folder) : folder_(folder) {
  create_folder();
  struct flock request = whole_file_for_writing();
  do {
    if (descriptor_ >= 0) close(descriptor_);
    descriptor_ = open(folder.lock().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) refuse(errno);
    if (fcntl(descriptor_, F_OFD_SETLK, &request) == 0) continue;
    if (errno == EAGAIN || errno == EACCES) {
      const ConfigError error = in_use(folder, describe_holder(descriptor_));
      created_.clear();  // the other process uses them
      release();
      throw error;
    }
    note_ = fmt::format("{}: this file system has no locks ({}), so a second run in the folder is not noticed",
                        folder.path, std::strerror(errno));
  } while (note_.empty() && !is_file(folder.lock(), descriptor_));  // a refused start may have removed it meanwhile
  const std::string text = Json({{"host", host_name()}, {"process", getpid()}, {"started", utc_now()}}).dump() + "\n";
  if (ftruncate(descriptor_, 0) != 0 || pwrite(descriptor_, text.data(), text.size(), 0) < 0)
    note_ = fmt::format("cannot write {}: {}; the folder is locked all the same", folder.lock(), std::strerror(errno));
}

void RunLock::create_folder() {
  fs::path path = fs::path(folder_.path).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  std::vector<fs::path> missing;  // innermost first
  for (std::error_code error; !path.empty() && fs::status(path, error).type() == fs::file_type::not_found;
       path = path.parent_path())
    missing.push_back(path);
  for (; !missing.empty(); missing.pop_back()) {
    if (::mkdir(missing.back().c_str(), 0777) == 0)
      created_.push_back(missing.back());
    else if (errno != EEXIST)  // another process may have made it meanwhile; then this one does not remove it
      refuse(errno);
  }
}

void RunLock::refuse(int reason) {
  release();
  throw ConfigError(Problem{.what = "train.folder = " + folder_.path + " cannot be written: " + std::strerror(reason),
                            .why = "a run keeps its checkpoints, logs and metrics there",
                            .fix = "set train.folder to a folder that you may write"});
}

RunLock::~RunLock() { release(); }

void RunLock::release() {
  std::error_code ignored;
  if (!created_.empty() && !fs::exists(folder_.record(), ignored)) fs::remove(folder_.lock(), ignored);
  for (auto folder = created_.rbegin(); folder != created_.rend(); ++folder)
    if (::rmdir(folder->c_str()) != 0) break;  // something has been put into it
  created_.clear();
  if (descriptor_ >= 0) close(descriptor_);
  descriptor_ = -1;
}

}  // namespace choir
