#include "hwy/highway.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/matmul.h"
#include "kernels/tiles.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace choir::kernels::cpu {

#if defined(__x86_64__) && defined(__linux__)

/// Linux saves the tiles of a process, and lets it use them, only after this request:
/// Documentation/arch/x86/xstate.rst.
static bool request_tiles() {
  constexpr long arch_req_xcomp_perm = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

bool has_pairs() {
  if ((HWY_TARGETS & HWY_AVX3) == 0) return false;  // the kernels are not in this program
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bf16");
}

bool has_fast_vectors() { return has_pairs() && __builtin_cpu_is("amd"); }

/// The instructions are there, and this process may use them.
static bool may_use_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & amx_bf16) == 0 || (edx & amx_tile) == 0) return false;
  return has_pairs() && request_tiles();
}

#else

bool has_pairs() { return false; }
bool has_fast_vectors() { return false; }
static bool may_use_tiles() { return false; }

#endif

Tiles examine_tiles() {
  static const Tiles found = !may_use_tiles()                ? Tiles::missing
                             : is_exact(&tile_matmul<float>) ? Tiles::right
                                                             : Tiles::wrong;
  return found;
}

bool has_tiles() { return examine_tiles() == Tiles::right; }

const char* describe(Tiles tiles) {
  switch (tiles) {
    case Tiles::missing:
      return "this processor has no tiles, or the system does not let this process use them";
    case Tiles::wrong:
      return "the tiles of this processor have given wrong products of small integers";
    case Tiles::right:
      break;
  }
  return "";
}

}  // namespace choir::kernels::cpu
