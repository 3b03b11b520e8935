#include "tests/simgpu/nvtx.h"

#include <nvtx3/nvToolsExt.h>

namespace choir::simgpu {

std::vector<std::string>& nvtx_ranges() {
  thread_local std::vector<std::string> ranges;
  return ranges;
}

namespace {

int push(const char* name) {
  nvtx_ranges().emplace_back(name);
  return static_cast<int>(nvtx_ranges().size()) - 1;
}

int pop() {
  if (nvtx_ranges().empty()) return -1;
  nvtx_ranges().pop_back();
  return static_cast<int>(nvtx_ranges().size());
}

/// NVTX calls this at its first use: it writes the two functions into NVTX's table.
int initialise(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  if (callbacks == nullptr) return 0;
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size) == 0) return 0;
  *table[NVTX_CBID_CORE_RangePushA] = reinterpret_cast<NvtxFunctionPointer>(push);
  *table[NVTX_CBID_CORE_RangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}

// NVTX's header reads this pointer, which a program has once, at its first use.
[[maybe_unused]] const bool installed = (InitializeInjectionNvtx2_fnptr = initialise, true);

}  // namespace
}  // namespace choir::simgpu
