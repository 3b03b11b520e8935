// Every CUDA kernel compiles for every target, and keeps its variables in registers.
//
// Variables that do not fit are spilled to local memory, which is as slow as global memory; an array that is indexed at
// run time is placed there too. Nothing else shows it: the results are the same, only later. The build compiles machine
// code for one target; this test compiles the PTX of each target with ptxas, as nvcc does, and reads its report. The
// build folder caches reports by PTX, compiler and target: a kernel that has not changed costs no time.
#include <cxxabi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/simgpu/fat_binary.h"

namespace choir::simgpu::tests {
namespace {

namespace fs = std::filesystem;

// ---- The kernels that may use local memory

struct Exception {
  std::string kernel;  ///< "flash_dq_kernel<float, 128>"
  int target;
  int local_bytes;  ///< exactly as in the report
  std::string reason;
};
const std::vector<Exception> exceptions = {
    {"flash_dq_kernel<float, 256, false>", 80, 48, "f32 tiles of the widest heads, with the options of scores besides"},
    {"flash_dq_kernel<float, 32, true>", 90, 8, "two registers more than the blocks that share a multiprocessor leave"},
    {"flash_forward_kernel<bf16, 256, true>", 90, 8, "as the line before"},
};

// ---- The report

struct Kernel {
  std::string name;  ///< without namespaces and parameters
  int registers = 0, shared_bytes = 0;
  int local_bytes = 0;  ///< of a thread: the stack frame, or what is stored and loaded again if that is more
};

/// _ZN5choir7kernels12adamw_kernelILi4EEEvNS0_5AdamWE -> adamw_kernel<4>
std::string short_name(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> demangled(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  if (status != 0) return mangled;
  static const std::regex surroundings(R"(^void |\w+::|\(.*)");
  return std::regex_replace(std::string(demangled.get()), surroundings, "");
}

/// Includes functions that are called, not inlined.
std::vector<Kernel> parse(const std::string& report) {
  static const std::regex function(R"(Function properties for (\S+))"), registers(R"(Used (\d+) registers)"),
      shared(R"((\d+) bytes smem)"),
      local(R"((\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads)");
  std::vector<Kernel> kernels;
  std::istringstream lines(report);
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_search(line, match, function)) kernels.push_back({.name = short_name(match[1])});
    if (kernels.empty()) continue;
    Kernel& kernel = kernels.back();
    if (std::regex_search(line, match, local))
      kernel.local_bytes = std::max({std::stoi(match[1]), std::stoi(match[2]), std::stoi(match[3])});
    if (std::regex_search(line, match, registers)) kernel.registers = std::stoi(match[1]);
    if (std::regex_search(line, match, shared)) kernel.shared_bytes = std::stoi(match[1]);
  }
  return kernels;
}

/// The output of a command; throws if it fails.
std::string output_of(const std::string& command) {
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::string output;
  std::array<char, 4096> part;
  for (std::size_t n; (n = std::fread(part.data(), 1, part.size(), pipe)) > 0;) output.append(part.data(), n);
  if (pclose(pipe) != 0) throw std::runtime_error(command + " fails:\n" + output);
  return output;
}

void write(const fs::path& path, std::string_view text) {
  std::ofstream file(path);
  if (!(file << text).flush()) throw std::runtime_error("cannot write " + path.string());
}

/// ptxas's report on a module, cached in a file.
std::string report_on(std::string_view ptx, int target) {
  const std::string compile = CHOIR_PTXAS " -m64 --generate-line-info --warning-as-error -v -arch=sm_" +
                              std::to_string(target) + " -o /dev/null ";
  static const std::string compiler = output_of(CHOIR_PTXAS " --version");
  const std::hash<std::string_view> hash;
  const fs::path folder = CHOIR_REPORTS;
  const fs::path kept = folder / (std::to_string(hash(compile + compiler)) + "-" + std::to_string(hash(ptx)) + ".txt");
  if (std::ifstream file(kept); file) return {std::istreambuf_iterator<char>(file), {}};
  fs::create_directories(folder);
  const fs::path source = kept.string() + ".ptx";
  write(source, ptx);
  const std::string report = output_of(compile + source.string());
  write(source, report);
  fs::rename(source, kept);  // atomic: the file is complete or absent
  return report;
}

/// All of Choir's kernels, for one target.
std::vector<Kernel> kernels_for(int target) {
  std::vector<std::string_view> modules;
  for (const std::vector<EmbeddedPtx>& fat_binary : registered_ptx()) {
    const auto found = std::find_if(fat_binary.begin(), fat_binary.end(),
                                    [&](const EmbeddedPtx& ptx) { return ptx.target == target; });
    if (found == fat_binary.end()) throw std::runtime_error("a module has no PTX for sm_" + std::to_string(target));
    modules.push_back(found->text);
  }
  // Two at a time, the longest first.
  std::sort(modules.begin(), modules.end(), [](auto a, auto b) { return a.size() > b.size(); });
  std::vector<std::string> reports(modules.size());
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t n; (n = next++) < modules.size();) reports[n] = report_on(modules[n], target);
  };
  std::future<void> other = std::async(std::launch::async, work);
  work();
  other.get();

  std::vector<Kernel> kernels;
  for (const std::string& report : reports)
    for (Kernel& kernel : parse(report)) kernels.push_back(std::move(kernel));
  return kernels;
}

/// A line for each kernel whose local memory differs from the list, and for each kernel that is only in the list.
std::string judge(const std::vector<Kernel>& kernels, int target, const std::vector<Exception>& listed) {
  std::string problems;
  for (const Kernel& kernel : kernels) {
    int allowed = 0;
    for (const Exception& exception : listed)
      if (exception.kernel == kernel.name && exception.target == target) allowed = exception.local_bytes;
    if (kernel.local_bytes != allowed)
      problems += kernel.name + " has " + std::to_string(kernel.local_bytes) + " bytes of local memory on sm_" +
                  std::to_string(target) + ", the list says " + std::to_string(allowed) + "\n";
  }
  for (const Exception& exception : listed)
    if (exception.target == target && std::none_of(kernels.begin(), kernels.end(), [&](const Kernel& kernel) {
          return kernel.name == exception.kernel;
        }))
      problems += exception.kernel + " is in the list, but not in the program\n";
  return problems;
}

// ---- The tests

class Registers : public ::testing::TestWithParam<int> {};

TEST_P(Registers, HoldTheVariablesOfKernels) {
  const int target = GetParam();
  const std::vector<Kernel> kernels = kernels_for(target);
  ASSERT_FALSE(kernels.empty());
  std::printf("%-64s %9s %12s %11s\n", ("sm_" + std::to_string(target)).c_str(), "registers", "static smem", "local");
  for (const Kernel& kernel : kernels) {
    std::printf("%-64s %9d %12d %11d\n", kernel.name.c_str(), kernel.registers, kernel.shared_bytes,
                kernel.local_bytes);
    EXPECT_GT(kernel.registers, 0) << kernel.name << ": the report is not understood";
  }
  EXPECT_EQ(judge(kernels, target, exceptions), "");
}

INSTANTIATE_TEST_SUITE_P(Targets, Registers, ::testing::Values(80, 90, 100),
                         [](const auto& target) { return "sm_" + std::to_string(target.param); });

TEST(RegistersReport, ShowsLocalMemory) {
  const std::string ptx = R"(
.version 7.0
.target sm_80
.address_size 64
.visible .entry indexes_an_array(.param .u64 out, .param .u32 i) {
  .local .align 4 .b8 array[64];
  .reg .b32 %r<3>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  ld.param.u32 %r1, [i];
  mov.u64 %rd2, array;
  mad.wide.u32 %rd3, %r1, 4, %rd2;
  st.local.u32 [%rd3], %r1;
  ld.local.u32 %r2, [array + 8];
  st.global.u32 [%rd1], %r2;
  ret;
})";
  const std::vector<Kernel> kernels = parse(report_on(ptx, 80));
  ASSERT_EQ(kernels.size(), 1u);
  EXPECT_EQ(kernels[0].name, "indexes_an_array");
  EXPECT_EQ(kernels[0].local_bytes, 64);
  EXPECT_EQ(judge(kernels, 80, {}), "indexes_an_array has 64 bytes of local memory on sm_80, the list says 0\n");
}

TEST(RegistersReport, IsReadAsPtxasWritesIt) {
  const std::vector<Kernel> kernels = parse(R"(
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5choir7kernels12adamw_kernelILi4EEEvNS0_5AdamWE' for 'sm_80'
ptxas info    : Function properties for _ZN5choir7kernels12adamw_kernelILi4EEEvNS0_5AdamWE
    8 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem, 408 bytes cmem[0]
)");
  ASSERT_EQ(kernels.size(), 1u);
  EXPECT_EQ(kernels[0].name, "adamw_kernel<4>");
  EXPECT_EQ(kernels[0].registers, 30);
  EXPECT_EQ(kernels[0].shared_bytes, 1024);
  EXPECT_EQ(kernels[0].local_bytes, 12);
}

TEST(RegistersReport, IsComparedWithTheList) {
  const std::vector<Kernel> kernels = {{.name = "spills", .local_bytes = 16}, {.name = "does_not"}};
  const std::vector<Exception> right = {{.kernel = "spills", .target = 90, .local_bytes = 16, .reason = "a test"}};
  EXPECT_EQ(judge(kernels, 90, right), "");
  EXPECT_EQ(judge(kernels, 80, right), "spills has 16 bytes of local memory on sm_80, the list says 0\n");
  EXPECT_EQ(judge(kernels, 90, {{"spills", 90, 24, ""}}),
            "spills has 16 bytes of local memory on sm_90, the list says 24\n");
  EXPECT_EQ(judge(kernels, 90, {right[0], {"does_not", 90, 8, ""}}),
            "does_not has 0 bytes of local memory on sm_90, the list says 8\n");
  EXPECT_EQ(judge(kernels, 90, {right[0], {"was_renamed", 90, 8, ""}}),
            "was_renamed is in the list, but not in the program\n");
}

TEST(RegistersReport, IsAnErrorIfPtxasRefuses) {
  EXPECT_THROW(report_on(".version 7.0\n.target sm_80\nthis is not PTX", 80), std::runtime_error);
}

}  // namespace
}  // namespace choir::simgpu::tests
