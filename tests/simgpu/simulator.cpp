#include "tests/simgpu/simulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <utility>

namespace choir::simgpu {
namespace {

constexpr int nan_bits = 0xff;
constexpr std::size_t alignment = 256;

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

std::size_t hash_of(const void* bytes, std::int64_t count) {
  return std::hash<std::string_view>{}({static_cast<const char*>(bytes), static_cast<std::size_t>(count)});
}

}  // namespace

void join(Clock& into, const Clock& other) {
  for (const auto& [stream, count] : other) into[stream] = std::max(into[stream], count);
}

Simulator::Simulator() : checker_(std::make_unique<MemoryChecker>()) {}

// --- what nvcc registers

std::size_t Simulator::add_fat_binary(const void* wrapper) {
  fat_binaries_.push_back(embedded_ptx(wrapper));
  return fat_binaries_.size() - 1;
}

void Simulator::add_kernel(std::size_t fat_binary, const void* host_function, const char* name) {
  kernels_[host_function] = {.fat_binary = fat_binary, .name = name};
}

RegisteredKernel* Simulator::kernel(const void* host_function) {
  const auto found = kernels_.find(host_function);
  return found == kernels_.end() ? nullptr : &found->second;
}

/// The module for the capability of the options, or for the highest one below it, as a driver chooses.
PtxModule& Simulator::module_of(std::size_t fat_binary) {
  const EmbeddedPtx* best = nullptr;
  for (const EmbeddedPtx& ptx : fat_binaries_[fat_binary])
    if (ptx.target <= options_.compute_capability && (best == nullptr || ptx.target > best->target)) best = &ptx;
  if (best == nullptr)
    throw std::runtime_error("no PTX for sm_" + std::to_string(options_.compute_capability) + " in the program");
  std::unique_ptr<PtxModule>& module = modules_[{fat_binary, best->target}];
  if (!module) module = std::make_unique<PtxModule>(best->text);
  return *module;
}

// --- start and end

void Simulator::start(Lock&) {
  if (!configured_) {
    options_ = options_from_environment();
    random_.seed(options_.seed);
    set_fault();
    configured_ = true;
  }
  if (streams_.empty()) {  // the stream of calls without a stream
    streams_.push_back(std::make_unique<SimulatedStream>());
  }
  if (!started_) {
    started_ = true;
    thread_ = std::thread([this] { run(); });
    thread_.detach();  // it ends with the process
  }
}

void Simulator::clear(Lock& lock) {
  for (const auto& stream : streams_) stream->queue.resize(stream->busy ? 1 : 0);
  progress_.wait(lock, [&] { return std::none_of(streams_.begin(), streams_.end(), [](auto& s) { return s->busy; }); });
  while (!memory_.empty()) release(memory_.begin()->second.begin);
  freed_.clear();
  freed_bytes_ = 0;
  streams_.clear();
  events_.clear();
  findings_.clear();
  traffic_.clear();
  hosts_.clear();
  allocated_ = 0;
  allocations_until_failure_ = operations_until_failure_ = -1;
  failure_ = broken_ = cudaSuccess;
}

void Simulator::set_fault() {
  operations_until_failure_ = options_.failing_operation;
  failure_ = cudaErrorIllegalAddress;
}

void Simulator::configure(const Options& options) {
  Lock lock(mutex_);
  clear(lock);
  options_ = options;
  random_.seed(options.seed);
  set_fault();
  configured_ = true;
  for (auto& [function, kernel] : kernels_) kernel.most_dynamic_shared_bytes = 48 << 10;
  start(lock);
}

const Options& Simulator::options() {
  Lock lock(mutex_);
  start(lock);
  return options_;
}

bool Simulator::host_waits() {
  const Lock lock(mutex_);
  return waiting_ > 0;
}

void Simulator::pass_time(double seconds) {
  const Lock lock(mutex_);
  passed_ += std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

cudaError_t Simulator::device_state() {
  const Lock lock(mutex_);
  return broken_;
}

// --- the thread that runs operations

void Simulator::run() {
  Lock lock(mutex_);
  constexpr std::chrono::microseconds patience(20'000), poll(200);
  for (;;) {
    const bool any = std::any_of(streams_.begin(), streams_.end(), [](const auto& s) { return !s->queue.empty(); });
    if (!any) {
      work_.wait(lock);
      continue;
    }
    // As late as the host allows: until it waits, or until it has not waited for a while.
    if (options_.order == Order::late && waiting_ == 0) work_.wait_for(lock, patience, [&] { return waiting_ > 0; });
    if (!run_one(lock)) work_.wait_for(lock, poll);
  }
}

/// `lock` is released while ready() of the operation runs, which may add a finding.
bool Simulator::is_ready(SimulatedStream& stream, Lock& lock) {
  if (stream.queue.empty() || stream.busy) return false;
  const Task& task = stream.queue.front();
  if (task.waits_for && task.waits_for->done < task.version) return false;
  if (!task.operation.ready) return true;
  stream.busy = true;  // the task stays at the head meanwhile
  lock.unlock();
  const bool ready = task.operation.ready();
  lock.lock();
  stream.busy = false;
  progress_.notify_all();
  return ready;
}

SimulatedStream* Simulator::choose(const std::vector<SimulatedStream*>& ready) {
  switch (options_.order) {
    case Order::program:
      return *std::min_element(ready.begin(), ready.end(), [](const auto* a, const auto* b) {
        return a->queue.front().order < b->queue.front().order;
      });
    case Order::late:  // what was enqueued last runs first
      return *std::max_element(ready.begin(), ready.end(), [](const auto* a, const auto* b) {
        return a->queue.front().order < b->queue.front().order;
      });
    case Order::random:
      break;
  }
  return ready[random_() % ready.size()];
}

bool Simulator::run_one(Lock& lock) {
  std::vector<SimulatedStream*> all, ready;
  for (const auto& stream : streams_)
    if (!stream->queue.empty()) all.push_back(stream.get());  // a stream is not destroyed while its queue has entries
  for (SimulatedStream* stream : all)
    if (is_ready(*stream, lock)) ready.push_back(stream);
  std::erase_if(ready, [](const SimulatedStream* stream) { return stream->queue.empty(); });
  if (ready.empty()) return false;
  execute(*choose(ready), lock);
  return true;
}

void Simulator::execute(SimulatedStream& stream, Lock& lock) {
  Task& task = stream.queue.front();
  stream.busy = true;
  join(stream.clock, task.host);
  stream.clock[stream.id] = task.number;
  if (task.waits_for) join(stream.clock, task.waits_for->clocks[task.version]);
  const std::string name = name_of(task, stream);
  try {
    const std::size_t findings_before = findings_.size();
    check_operation(task.operation, name);
    for (const Access& access : task.operation.accesses) touch(access, stream, task);
    const bool wrong = findings_.size() > findings_before;
    const bool broken = broken_ != cudaSuccess;
    if (operations_until_failure_ >= 0 && operations_until_failure_-- == 0) broken_ = failure_;
    if (task.operation.run && !broken && !(wrong && findings_.back().kind == "out of bounds")) {
      executing_ = true;
      lock.unlock();
      task.operation.run();
      lock.lock();
    }
    for (const Access& access : task.operation.accesses)
      if (access.write) checker_->mark_initialised(access.begin, access.bytes);
  } catch (const std::exception& error) {
    if (!lock.owns_lock()) lock.lock();
    note("simulator", name + ": " + error.what());
    broken_ = cudaErrorLaunchFailure;
  }
  executing_ = false;
  if (task.records) {
    task.records->done = std::max(task.records->done, task.version);
    task.records->at = std::chrono::steady_clock::now() + passed_;
    task.records->clocks[task.version] = stream.clock;
  }
  stream.done = task.number;
  stream.queue.pop_front();
  stream.busy = false;
  progress_.notify_all();
}

/// Waits for the device. Returns false, and adds a finding, if nothing has happened for too long.
bool Simulator::wait_until(Lock& lock, const std::function<bool()>& done) {
  const auto finished_operations = [&] {
    std::uint64_t count = 0;
    for (const auto& stream : streams_) count += stream->done;
    return count;
  };
  ++waiting_;
  work_.notify_all();
  auto last_progress = std::chrono::steady_clock::now();
  std::uint64_t finished = finished_operations();
  bool hangs = false;
  while (!done() && !hangs) {
    progress_.wait_for(lock, std::chrono::milliseconds(20));
    if (const std::uint64_t now = finished_operations(); executing_ || now != finished) {
      finished = now;
      last_progress = std::chrono::steady_clock::now();
    }
    const std::chrono::duration<double> silent = std::chrono::steady_clock::now() - last_progress;
    hangs = !done() && silent.count() > options_.hang_seconds;
  }
  --waiting_;
  if (hangs) {
    note("hang", "nothing has happened for " + std::to_string(options_.hang_seconds) + " s:" + pending());
    for (const auto& stream : streams_) stream->queue.resize(stream->busy ? 1 : 0);
    broken_ = cudaErrorLaunchTimeout;
  }
  return !hangs;
}

/// Threads do not wait for a broken device.
cudaError_t Simulator::finish_wait(Lock& lock, const std::function<bool()>& done) {
  wait_until(lock, [&] { return broken_ != cudaSuccess || done(); });
  return broken_;
}

std::string Simulator::pending() const {
  std::string text;
  for (const auto& stream : streams_)
    if (!stream->queue.empty())
      text += "\n  stream " + std::to_string(stream->id) + ": " + std::to_string(stream->queue.size()) +
              " operations wait, first " + name_of(stream->queue.front(), *stream);
  return text;
}

std::string Simulator::name_of(const Task& task, const SimulatedStream& stream) {
  std::string text = task.operation.name;
  if (!task.label.empty()) text += " in '" + task.label + "'";
  return text + " (stream " + std::to_string(stream.id) + ")";
}

/// A new thread starts with the join of the clocks of all threads.
Clock& Simulator::host() {
  const auto [found, is_new] = hosts_.try_emplace(std::this_thread::get_id());
  if (is_new)
    for (const auto& [thread, clock] : hosts_) join(found->second, clock);
  return found->second;
}

void Simulator::push(SimulatedStream& stream, Task task) {
  const std::vector<std::string> ranges = open_ranges();
  if (!ranges.empty()) task.label = ranges.back();
  task.number = ++stream.enqueued;
  task.order = next_order_++;
  task.host = host();
  stream.queue.push_back(std::move(task));
  work_.notify_all();
}

// --- checks

void Simulator::note(const std::string& kind, const std::string& text) {
  const bool known = std::any_of(findings_.begin(), findings_.end(),
                                 [&](const Finding& f) { return f.kind == kind && f.text == text; });
  constexpr std::size_t most = 1000;
  if (!known && findings_.size() < most) findings_.push_back({.kind = kind, .text = text});
}

SimulatedMemory* Simulator::memory_at(std::uintptr_t address) {
  const auto after = memory_.upper_bound(address);
  return after == memory_.end() || address < after->second.begin ? nullptr : &after->second;
}

/// Checks the accesses that a library has declared: inside of allocations, and initialised if they are read.
void Simulator::check_operation(const Operation& operation, const std::string& name) {
  for (const Access& access : operation.accesses) {
    if (access.bytes == 0) continue;
    const SimulatedMemory* memory = memory_at(number(access.begin));
    const std::uintptr_t end = number(access.begin) + static_cast<std::uintptr_t>(access.bytes);
    if (memory == nullptr || end > memory->end) {
      note("out of bounds", name + (access.write ? " writes " : " reads ") + std::to_string(access.bytes) + " bytes, " +
                                checker_->outside(access.begin, access.bytes));
      return;
    }
    if (!access.write && !memory->pinned && options_.check)
      if (const void* first = checker_->first_uninitialised(access.begin, access.bytes))
        note("uninitialised read", name + " reads " + std::to_string(access.bytes) + " bytes, of which byte " +
                                       std::to_string(number(first) - number(access.begin)) +
                                       " and maybe others have never been written");
  }
}

void Simulator::touch(const Access& access, const SimulatedStream& stream, const Task& task, const char* kind) {
  if (!options_.check || access.bytes == 0) return;
  SimulatedMemory* memory = memory_at(number(access.begin));
  if (memory == nullptr) return;
  if (!memory->freed_by.empty())
    note("use after free", name_of(task, stream) + (access.write ? " writes" : " reads") + " memory that " +
                               memory->freed_by + " has freed");
  const Touch mine = {.begin = number(access.begin),
                      .end = number(access.begin) + static_cast<std::uintptr_t>(access.bytes),
                      .write = access.write,
                      .stream = stream.id,
                      .number = task.number,
                      .name = name_of(task, stream)};
  std::vector<Touch> kept;
  for (Touch& other : memory->touches) {
    const auto known = stream.clock.find(other.stream);
    const bool before = known != stream.clock.end() && known->second >= other.number;
    const bool overlaps = other.begin < mine.end && mine.begin < other.end;
    if (overlaps && !before && (mine.write || other.write))
      note(kind, mine.name + (mine.write ? " writes" : " reads") + " what " + other.name +
                     (other.write ? " writes" : " reads") + ", and nothing orders them");
    // What is ordered after this access is ordered after the touches that it replaces.
    const bool covered = other.begin >= mine.begin && other.end <= mine.end && before &&
                         (mine.write || (!other.write && other.stream == mine.stream));
    if (!covered) kept.push_back(std::move(other));
  }
  kept.push_back(mine);
  memory->touches = std::move(kept);
}

void Simulator::add_finding(Finding finding) {
  Lock lock(mutex_);
  note(finding.kind, finding.text);
}

std::vector<Finding> Simulator::take_findings() {
  Lock lock(mutex_);
  start(lock);
  wait_until(lock,
             [&] { return std::all_of(streams_.begin(), streams_.end(), [](auto& s) { return s->queue.empty(); }); });
  return std::exchange(findings_, {});
}

std::vector<KernelTraffic> Simulator::traffic() {
  Lock lock(mutex_);
  std::vector<KernelTraffic> all;
  for (const auto& [names, traffic] : traffic_) all.push_back(traffic);
  return all;
}

KernelTraffic& Simulator::traffic_of(const Task& task, const std::string& kernel) {
  KernelTraffic& traffic = traffic_[{task.label, kernel}];
  traffic.label = task.label;
  traffic.kernel = kernel;
  return traffic;
}

void Simulator::fail_allocation(int after) {
  const Lock lock(mutex_);
  allocations_until_failure_ = after;
}

void Simulator::fail_device(cudaError_t error, int after) {
  const Lock lock(mutex_);
  failure_ = error;
  operations_until_failure_ = after;
}

std::string Simulator::rest() {
  Lock lock(mutex_);
  std::string text;
  for (const Finding& finding : findings_) text += finding.kind + ": " + finding.text + "\n";
  if (broken_ != cudaSuccess) return text;  // a broken device frees nothing
  for (const auto& [end, memory] : memory_)
    if (memory.freed_by.empty())
      text += "leak: " + std::to_string(memory.end - memory.begin) + " bytes of " +
              (memory.pinned ? "pinned host" : "device") + " memory\n";
  for (const auto& stream : streams_)
    if (stream->id != 0) text += "leak: stream " + std::to_string(stream->id) + "\n";
  if (!events_.empty()) text += "leak: " + std::to_string(events_.size()) + " events\n";
  return text;
}

// --- memory

cudaError_t Simulator::allocate(void** address, std::int64_t bytes, bool pinned, cudaStream_t* in_stream) {
  Lock lock(mutex_);
  start(lock);
  *address = nullptr;
  if (broken_ != cudaSuccess) return broken_;
  if (bytes == 0) return cudaSuccess;
  if (in_stream != nullptr && find(*in_stream) == nullptr) return cudaErrorInvalidResourceHandle;
  const auto fits = [&] { return pinned || allocated_ + bytes <= options_.memory_bytes; };
  if (!fits())  // frees that are enqueued in a stream may not have run yet
    wait_until(lock,
               [&] { return std::all_of(streams_.begin(), streams_.end(), [](auto& s) { return s->queue.empty(); }); });
  const bool fails = !pinned && allocations_until_failure_ >= 0 && allocations_until_failure_-- == 0;
  if (!fits() || fails) return cudaErrorMemoryAllocation;

  const auto rounded = (static_cast<std::size_t>(bytes) + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (options_.computes) std::memset(memory, nan_bits, rounded);
  const std::uintptr_t end = number(memory) + static_cast<std::uintptr_t>(bytes);
  memory_[end] = {.begin = number(memory), .end = end, .pinned = pinned};
  if (!pinned) allocated_ += bytes;
  if (options_.computes) checker_->add_allocation(memory, bytes);
  if (options_.computes && pinned) checker_->mark_initialised(memory, bytes);  // the host may write it at any time
  if (in_stream != nullptr) {  // other streams may use it only after this stream has reached this point
    SimulatedStream* stream = find(*in_stream);
    Task task;
    task.operation.name = "cudaMallocAsync";
    push(*stream, std::move(task));
    SimulatedMemory& made = memory_[end];
    made.touches.push_back({.begin = made.begin,
                            .end = end,
                            .write = true,
                            .stream = stream->id,
                            .number = stream->enqueued,
                            .name = "cudaMallocAsync (stream " + std::to_string(stream->id) + ")"});
  }
  *address = memory;
  return cudaSuccess;
}

/// The memory is kept for a while, full of NaN and uninitialised, so that a later use of it is found.
void Simulator::free(SimulatedMemory& memory, const std::string& by) {
  constexpr std::int64_t most_kept = 16 << 20;
  const auto bytes = static_cast<std::int64_t>(memory.end - memory.begin);
  auto* begin = reinterpret_cast<void*>(memory.begin);
  memory.freed_by = by;
  if (options_.computes) std::memset(begin, nan_bits, memory.end - memory.begin);
  checker_->mark_uninitialised(begin, bytes);
  if (!memory.pinned) allocated_ -= bytes;
  freed_.push_back(memory.begin);
  freed_bytes_ += bytes;
  while (freed_bytes_ > most_kept) {
    const auto oldest =
        std::find_if(memory_.begin(), memory_.end(), [&](const auto& m) { return m.second.begin == freed_.front(); });
    freed_bytes_ -= static_cast<std::int64_t>(oldest->second.end - oldest->second.begin);
    release(freed_.front());
    freed_.pop_front();
  }
}

/// Returns the memory to the host.
void Simulator::release(std::uintptr_t begin) {
  const auto found =
      std::find_if(memory_.begin(), memory_.end(), [&](const auto& m) { return m.second.begin == begin; });
  if (found == memory_.end()) return;
  auto* bytes = reinterpret_cast<void*>(begin);
  checker_->remove_allocation(bytes);
  std::free(bytes);
  memory_.erase(found);
}

cudaError_t Simulator::free_now(void* address, bool pinned) {
  if (address == nullptr) return cudaSuccess;
  Lock lock(mutex_);
  SimulatedMemory* memory = memory_at(number(address));
  if (broken_ != cudaSuccess) return broken_;
  if (memory == nullptr || memory->begin != number(address) || !memory->freed_by.empty() || memory->pinned != pinned)
    return cudaErrorInvalidValue;
  wait_until(lock,
             [&] { return std::all_of(streams_.begin(), streams_.end(), [](auto& s) { return s->queue.empty(); }); });
  free(*memory, "cudaFree");
  return cudaSuccess;
}

cudaError_t Simulator::free_in_stream(void* address, cudaStream_t handle) {
  if (address == nullptr) return cudaSuccess;
  Lock lock(mutex_);
  SimulatedStream* stream = find(handle);
  const SimulatedMemory* memory = memory_at(number(address));
  if (broken_ != cudaSuccess) return broken_;
  if (memory != nullptr && memory->pinned) return cudaErrorInvalidValue;
  if (stream == nullptr || memory == nullptr || memory->begin != number(address) || !memory->freed_by.empty())
    return cudaErrorInvalidValue;
  Task task;
  task.operation.name = "cudaFreeAsync";
  task.operation.run = [this, address, stream] {
    const Lock again(mutex_);
    SimulatedMemory* freed = memory_at(number(address));
    if (freed == nullptr) return;
    const Task& running = stream->queue.front();
    touch({.begin = address, .bytes = static_cast<std::int64_t>(freed->end - freed->begin), .write = true}, *stream,
          running, "use after free");
    free(*freed, name_of(running, *stream));
  };
  push(*stream, std::move(task));
  return cudaSuccess;
}

cudaError_t Simulator::memory_info(std::size_t* free, std::size_t* total) {
  Lock lock(mutex_);
  start(lock);
  if (broken_ != cudaSuccess) return broken_;
  *total = static_cast<std::size_t>(options_.memory_bytes);
  *free = static_cast<std::size_t>(options_.memory_bytes - allocated_);
  return cudaSuccess;
}

// --- streams and events

SimulatedStream* Simulator::find(cudaStream_t handle) {
  for (const auto& stream : streams_)
    if (handle == nullptr ? stream->id == 0 : static_cast<void*>(stream.get()) == static_cast<void*>(handle))
      return stream.get();
  return nullptr;
}

cudaError_t Simulator::create_stream(cudaStream_t* handle, int device) {
  Lock lock(mutex_);
  start(lock);
  if (broken_ != cudaSuccess) return broken_;
  streams_.push_back(std::make_unique<SimulatedStream>());
  streams_.back()->id = next_stream_++;
  streams_.back()->device = device;
  *handle = reinterpret_cast<cudaStream_t>(streams_.back().get());
  return cudaSuccess;
}

cudaError_t Simulator::destroy_stream(cudaStream_t handle) {
  Lock lock(mutex_);
  SimulatedStream* stream = handle == nullptr ? nullptr : find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  wait_until(lock, [&] { return stream->queue.empty(); });
  const int id = stream->id;
  const std::uint64_t done = stream->done;
  std::erase_if(streams_, [&](const auto& s) { return s.get() == stream; });
  forget(id, done);
  return broken_;
}

/// Forgets a stream that has been destroyed, if all that follows is ordered after its operations: no operation waits,
/// and every thread has waited for it. Without this, clocks grow with every stream that there has been.
void Simulator::forget(int stream, std::uint64_t operations) {
  const bool idle = std::all_of(streams_.begin(), streams_.end(), [](const auto& s) { return s->queue.empty(); });
  const bool known = std::all_of(hosts_.begin(), hosts_.end(), [&](const auto& entry) {
    const auto found = entry.second.find(stream);
    return operations == 0 || (found != entry.second.end() && found->second >= operations);
  });
  if (!idle || !known) return;
  for (auto& [thread, clock] : hosts_) clock.erase(stream);
  for (const auto& other : streams_) other->clock.erase(stream);
  for (auto& [handle, event] : events_)
    for (auto& [version, clock] : event->clocks) clock.erase(stream);
  for (auto& [end, memory] : memory_) std::erase_if(memory.touches, [&](const Touch& t) { return t.stream == stream; });
}

cudaError_t Simulator::synchronize_stream(cudaStream_t handle) {
  Lock lock(mutex_);
  start(lock);
  SimulatedStream* stream = find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const std::uint64_t target = stream->enqueued;
  const cudaError_t result = finish_wait(lock, [&] { return stream->done >= target; });
  join(host(), stream->clock);
  return result;
}

cudaError_t Simulator::query_stream(cudaStream_t handle) {
  Lock lock(mutex_);
  start(lock);
  SimulatedStream* stream = find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (broken_ == cudaSuccess && !stream->queue.empty()) return cudaErrorNotReady;
  join(host(), stream->clock);
  return broken_;
}

cudaError_t Simulator::synchronize_device() {
  Lock lock(mutex_);
  start(lock);
  const cudaError_t result = finish_wait(
      lock, [&] { return std::all_of(streams_.begin(), streams_.end(), [](auto& s) { return s->queue.empty(); }); });
  for (const auto& stream : streams_) join(host(), stream->clock);
  for (auto& [end, memory] : memory_) memory.touches.clear();  // all that follows is ordered after them
  return result;
}

cudaError_t Simulator::create_event(cudaEvent_t* handle, int device, bool timed) {
  Lock lock(mutex_);
  start(lock);
  if (broken_ != cudaSuccess) return broken_;
  auto event = std::make_shared<SimulatedEvent>();
  event->device = device;
  event->timed = timed;
  *handle = reinterpret_cast<cudaEvent_t>(event.get());
  events_[*handle] = std::move(event);
  return cudaSuccess;
}

/// The times are those of the interpreter.
cudaError_t Simulator::elapsed_time(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const Lock lock(mutex_);
  const auto first = events_.find(begin), last = events_.find(end);
  if (first == events_.end() || last == events_.end()) return cudaErrorInvalidResourceHandle;
  for (const auto& event : {first->second, last->second}) {
    if (!event->timed || event->recorded == 0) return cudaErrorInvalidResourceHandle;
    if (event->done < event->recorded) return cudaErrorNotReady;
  }
  *milliseconds = std::chrono::duration<float, std::milli>(last->second->at - first->second->at).count();
  return cudaSuccess;
}

cudaError_t Simulator::destroy_event(cudaEvent_t handle) {
  const Lock lock(mutex_);
  return events_.erase(handle) == 1 ? broken_ : cudaErrorInvalidResourceHandle;
}

cudaError_t Simulator::record_event(cudaEvent_t handle, cudaStream_t stream_handle) {
  const Lock lock(mutex_);
  SimulatedStream* stream = find(stream_handle);
  const auto event = events_.find(handle);
  if (stream == nullptr || event == events_.end()) return cudaErrorInvalidResourceHandle;
  if (broken_ != cudaSuccess) return broken_;
  if (stream_handle == nullptr) note("null stream", "cudaEventRecord on the null stream, which orders everything");
  if (stream_handle != nullptr && stream->device != event->second->device) return cudaErrorInvalidResourceHandle;
  Task task;
  task.operation.name = "cudaEventRecord";
  task.records = event->second;
  task.version = ++event->second->recorded;
  push(*stream, std::move(task));
  return cudaSuccess;
}

cudaError_t Simulator::wait_for_event(cudaStream_t stream_handle, cudaEvent_t handle) {
  const Lock lock(mutex_);
  SimulatedStream* stream = find(stream_handle);
  const auto event = events_.find(handle);
  if (stream == nullptr || event == events_.end()) return cudaErrorInvalidResourceHandle;
  if (broken_ != cudaSuccess) return broken_;
  if (stream_handle == nullptr) note("null stream", "cudaStreamWaitEvent on the null stream, which orders everything");
  if (event->second->recorded == 0) {
    note("event", "cudaStreamWaitEvent on an event that was never recorded waits for nothing");
    return cudaSuccess;
  }
  Task task;
  task.operation.name = "cudaStreamWaitEvent";
  task.waits_for = event->second;
  task.version = event->second->recorded;
  push(*stream, std::move(task));
  return cudaSuccess;
}

cudaError_t Simulator::synchronize_event(cudaEvent_t handle) {
  Lock lock(mutex_);
  const auto found = events_.find(handle);
  if (found == events_.end()) return cudaErrorInvalidResourceHandle;
  const std::shared_ptr<SimulatedEvent> event = found->second;
  const std::uint64_t version = event->recorded;
  const cudaError_t result = finish_wait(lock, [&] { return event->done >= version; });
  if (version > 0) join(host(), event->clocks[version]);
  return result;
}

cudaError_t Simulator::query_event(cudaEvent_t handle) {
  Lock lock(mutex_);
  const auto found = events_.find(handle);
  if (found == events_.end()) return cudaErrorInvalidResourceHandle;
  SimulatedEvent& event = *found->second;
  if (broken_ != cudaSuccess) return broken_;
  if (event.done < event.recorded) return cudaErrorNotReady;
  if (event.recorded > 0) join(host(), event.clocks[event.recorded]);
  return cudaSuccess;
}

// --- work

/// Copies from pinned memory read it when they run; copies from other host memory have read it when the call returns,
/// and copies to such memory have ended then. Pinned memory that an earlier copy has still to read or write is not the
/// host's: what a later copy does with it is ordered by the streams, as between any two operations.
cudaError_t Simulator::copy(void* to, const void* from, std::int64_t bytes, cudaMemcpyKind kind, cudaStream_t handle,
                            bool asynchronous) {
  Lock lock(mutex_);
  start(lock);
  SimulatedStream* stream = find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (broken_ != cudaSuccess) return broken_;
  if (bytes == 0) return cudaSuccess;
  if (asynchronous && handle == nullptr)
    note("null stream", "cudaMemcpyAsync on the null stream, which orders everything");
  SimulatedMemory *source = memory_at(number(from)), *target = memory_at(number(to));
  const bool from_pinned = source != nullptr && source->pinned, to_pinned = target != nullptr && target->pinned;
  const auto range_of = [bytes](const void* begin) {
    return std::pair{number(begin), number(begin) + static_cast<std::uintptr_t>(bytes)};
  };
  const auto is_the_hosts = [&](const SimulatedMemory& pinned, const void* begin) {
    const auto [first, end] = range_of(begin);
    return std::none_of(pinned.copied.begin(), pinned.copied.end(),
                        [&](const auto& other) { return other.first < end && first < other.second; });
  };
  const bool from_device = source != nullptr && !from_pinned, to_device = target != nullptr && !to_pinned;
  const bool says_from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const bool says_to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault && (from_device != says_from_device || to_device != says_to_device)) {
    note("copy direction",
         "the direction of a copy of " + std::to_string(bytes) + " bytes is not that of its addresses");
    return cudaErrorInvalidValue;
  }
  Task task;
  task.operation.name = asynchronous ? "cudaMemcpyAsync" : "cudaMemcpy";
  if (source != nullptr) task.operation.accesses.push_back({.begin = from, .bytes = bytes});
  if (target != nullptr) task.operation.accesses.push_back({.begin = to, .bytes = bytes, .write = true});
  if (source == nullptr) {
    auto staged = std::make_shared<std::string>(static_cast<const char*>(from), static_cast<std::size_t>(bytes));
    task.operation.run = [=] { std::memcpy(to, staged->data(), staged->size()); };
  } else {
    const bool promises = from_pinned && is_the_hosts(*source, from);
    const std::size_t promised = promises ? hash_of(from, bytes) : 0;
    if (to_pinned && asynchronous && is_the_hosts(*target, to))
      std::memset(to, nan_bits, static_cast<std::size_t>(bytes));  // not copied yet
    if (from_pinned) source->copied.push_back(range_of(from));
    if (to_pinned) target->copied.push_back(range_of(to));
    task.operation.run = [=, this] {
      if (promises && hash_of(from, bytes) != promised)
        add_finding({.kind = "host write",
                     .text = "the host has changed pinned memory before cudaMemcpyAsync has read it (" +
                             std::to_string(bytes) + " bytes)"});
      std::memmove(to, from, static_cast<std::size_t>(bytes));
      const Lock again(mutex_);
      const auto is_done = [&](const void* begin) {
        auto& copied = memory_at(number(begin))->copied;
        copied.erase(std::find(copied.begin(), copied.end(), range_of(begin)));
      };
      if (from_pinned) is_done(from);
      if (to_pinned) is_done(to);
    };
  }
  push(*stream, std::move(task));
  const bool blocks = !asynchronous || (target == nullptr);
  if (!blocks) return cudaSuccess;
  const std::uint64_t number_of_copy = stream->enqueued;
  const cudaError_t result = finish_wait(lock, [&] { return stream->done >= number_of_copy; });
  join(host(), stream->clock);
  return result;
}

cudaError_t Simulator::set(void* to, int value, std::int64_t bytes, cudaStream_t handle, bool asynchronous) {
  Lock lock(mutex_);
  start(lock);
  SimulatedStream* stream = find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (broken_ != cudaSuccess) return broken_;
  if (asynchronous && handle == nullptr)
    note("null stream", "cudaMemsetAsync on the null stream, which orders everything");
  Task task;
  task.operation.name = asynchronous ? "cudaMemsetAsync" : "cudaMemset";
  task.operation.accesses.push_back({.begin = to, .bytes = bytes, .write = true});
  task.operation.run = [=] { std::memset(to, value, static_cast<std::size_t>(bytes)); };
  push(*stream, std::move(task));
  if (asynchronous) return cudaSuccess;
  const std::uint64_t mine = stream->enqueued;
  const cudaError_t result = finish_wait(lock, [&] { return stream->done >= mine; });
  join(host(), stream->clock);
  return result;
}

cudaError_t Simulator::add(cudaStream_t handle, Operation operation) {
  Lock lock(mutex_);
  start(lock);
  SimulatedStream* stream = find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (broken_ != cudaSuccess) return broken_;
  if (handle == nullptr) note("null stream", operation.name + " on the null stream, which orders everything");
  Task task;
  task.operation = std::move(operation);
  task.operation.run = [this, stream, name = task.operation.name, run = std::move(task.operation.run)] {
    if (options_.computes && run) run();
    const Lock again(mutex_);
    ++traffic_of(stream->queue.front(), name).launches;
  };
  push(*stream, std::move(task));
  return cudaSuccess;
}

/// The limit of a block is for static and dynamic shared memory together.
cudaError_t Simulator::allow_dynamic_shared(RegisteredKernel& kernel, std::int64_t bytes) {
  Lock lock(mutex_);
  start(lock);
  const std::int64_t most = most_shared_bytes(options_.compute_capability);
  if (bytes < 0 || bytes + module_of(kernel.fat_binary).static_shared_bytes(kernel.name) > most)
    return cudaErrorInvalidValue;
  kernel.most_dynamic_shared_bytes = bytes;
  return broken_;
}

cudaError_t Simulator::launch(RegisteredKernel& kernel, dim3 grid, dim3 block, void** arguments,
                              std::size_t dynamic_shared_bytes, cudaStream_t handle, int device) {
  Lock lock(mutex_);
  start(lock);
  SimulatedStream* stream = find(handle);
  if (stream == nullptr || (handle != nullptr && stream->device != device)) return cudaErrorInvalidResourceHandle;
  if (broken_ != cudaSuccess) return broken_;
  if (handle == nullptr) note("null stream", kernel.name + " on the null stream, which orders everything");
  PtxModule* module = nullptr;
  try {
    module = &module_of(kernel.fat_binary);
  } catch (const std::exception& error) {
    note("simulator", kernel.name + ": " + error.what());
    return cudaErrorInvalidPtx;
  }
  const auto threads = std::uint64_t{block.x} * block.y * block.z;
  const bool grid_fits =
      grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x < 1u << 31 && grid.y < 1u << 16 && grid.z < 1u << 16;
  const bool block_fits = block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads > 0 && threads <= 1024;
  if (!grid_fits || !block_fits) return cudaErrorInvalidConfiguration;
  if (threads > static_cast<std::uint64_t>(module->max_threads_per_block(kernel.name)))
    return cudaErrorLaunchOutOfResources;
  const auto dynamic_bytes = static_cast<std::int64_t>(dynamic_shared_bytes);
  if (dynamic_bytes > kernel.most_dynamic_shared_bytes ||
      dynamic_bytes + module->static_shared_bytes(kernel.name) > most_shared_bytes(options_.compute_capability))
    return cudaErrorInvalidValue;

  auto parameters = std::make_shared<std::vector<std::byte>>();
  std::size_t i = 0;
  for (const auto& [offset, bytes] : module->parameters(kernel.name)) {
    parameters->resize(static_cast<std::size_t>(offset + bytes));
    std::memcpy(parameters->data() + offset, arguments[i++], static_cast<std::size_t>(bytes));
  }
  const unsigned seed = options_.order == Order::program ? 0 : static_cast<unsigned>(random_());
  Task task;
  task.operation.name = kernel.name;
  task.operation.run = [=, this, name = kernel.name] {
    const Launch launch = {.grid = {grid.x, grid.y, grid.z},
                           .block = {block.x, block.y, block.z},
                           .dynamic_shared_bytes = dynamic_bytes,
                           .parameters = *parameters,
                           .seed = seed,
                           .check = options_.check};
    const LaunchResult result = options_.computes ? module->launch(name, launch, *checker_) : LaunchResult{};
    const Lock again(mutex_);
    const Task& running = stream->queue.front();
    for (const Access& access : result.accesses) touch(access, *stream, running);
    const std::string label = running.label.empty() ? "" : " [" + running.label + "]";
    for (const Finding& finding : result.findings) note(finding.kind, finding.text + label);
    KernelTraffic& traffic = traffic_of(running, name);
    ++traffic.launches;
    traffic.instructions += result.instructions;
    traffic.bytes_read += result.bytes_read;
    traffic.bytes_written += result.bytes_written;
  };
  push(*stream, std::move(task));
  return cudaSuccess;
}

}  // namespace choir::simgpu
