#include "cpu/coarse_product.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/coarse.h"
#include "cpu/coarse_loops.h"

#if EBMVK_COARSE
#include <cpuid.h>
#include <immintrin.h>
// Linux requires a request before tile registers may be used.
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define EBMVK_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace ebmvk {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

std::align_val_t Alignment(size_t bytes) { return std::align_val_t{bytes < kHugePage ? 64 : kHugePage}; }

struct Kernel {
  const char* name;
  bool (*available)();
  Product product;
  const CoarseLoops& (*loops)();
};

bool Always() { return true; }

#if EBMVK_COARSE
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool HasVnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// 8 queries and 2 vectors of 16 points take 16 of 32 registers, which is more than enough to hide
// the instruction's latency.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) void VnniProduct(const int8_t* queries,
                                                                                 const uint8_t* panel,
                                                                                 const int32_t* start, size_t blocks,
                                                                                 size_t rows, int32_t* product) {
  constexpr size_t kRows = 8;
  for (size_t row = 0; row < rows; row += kRows) {
    __m512i sum[kRows][2];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm512_loadu_si512(start + (row + r) * 16);
    const int8_t* query = queries + (row / kTile * blocks * kTile + row % kTile) * kBlock;
    const uint8_t* points = panel;
    for (size_t block = 0; block < blocks; ++block, query += kTile * kBlock) {
      for (size_t quad = 0; quad < kBlock; quad += 4, points += kPanel * 4) {
        const __m512i p0 = _mm512_loadu_si512(points), p1 = _mm512_loadu_si512(points + 64);
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) {
          int32_t four;
          std::memcpy(&four, query + r * kBlock + quad, 4);
          const __m512i q = _mm512_set1_epi32(four);
          sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], p0, q);
          sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], p1, q);
        }
      }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      _mm512_storeu_si512(product + (row + r) * kPanel, sum[r][0]);
      _mm512_storeu_si512(product + (row + r) * kPanel + 16, sum[r][1]);
    }
  }
}
#endif

#if EBMVK_AMX
bool HasAmx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!HasVnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  if (!(d & kAmxTile) || !(d & kAmxInt8)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Eight tiles of 16 rows of 64 bytes. Not a local variable, because the compiler's intrinsic
// declares that it reads only its first bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "the format of the processor");
const TileConfig kTileConfig;

// 32 queries and 32 points at a time: four tiles of sums, two of queries, two of points.
__attribute__((target("amx-tile,amx-int8"))) void AmxProduct(const int8_t* queries, const uint8_t* panel,
                                                             const int32_t* start, size_t blocks, size_t rows,
                                                             int32_t* product) {
  _tile_loadconfig(&kTileConfig);
  for (size_t row = 0; row < rows; row += kTile, start += kTile * 16, product += kTile * kPanel) {
    _tile_loadd(0, start, 64);
    _tile_loadd(1, start, 64);
    _tile_loadd(2, start + 256, 64);
    _tile_loadd(3, start + 256, 64);
    const uint8_t* points = panel;
    for (size_t block = 0; block < blocks; ++block, queries += kTile * kBlock, points += kPanel * kBlock) {
      _tile_loadd(4, queries, 64);
      _tile_loadd(6, points, kPanel * 4);
      _tile_loadd(7, points + 64, kPanel * 4);
      _tile_loadd(5, queries + 16 * kBlock, 64);
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, product, kPanel * 4);
    _tile_stored(1, product + 16, kPanel * 4);
    _tile_stored(2, product + 16 * kPanel, kPanel * 4);
    _tile_stored(3, product + 16 * kPanel + 16, kPanel * 4);
  }
  _tile_release();
}
#endif

constexpr Kernel kKernels[] = {
#if EBMVK_AMX
    {"amx", HasAmx, AmxProduct, Avx512Loops},
#endif
#if EBMVK_COARSE
    {"vnni", HasVnni, VnniProduct, Avx512Loops},
    {"avx2", HasAvx2, nullptr, Avx2Loops},
#endif
    {"none", Always, nullptr, nullptr},
};

const std::vector<Kernel>& Available() {
  static const std::vector<Kernel> available = [] {
    std::vector<Kernel> list;
    for (const Kernel& kernel : kKernels) {
      if (kernel.available()) list.push_back(kernel);
    }
    return list;
  }();
  return available;
}

const Kernel*& InUse() {
  static const Kernel* kernel = &Available().front();
  return kernel;
}

}  // namespace

void* AllocateLines(size_t bytes) {
  void* memory = ::operator new(bytes, Alignment(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) (void)madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory;
}

void FreeLines(void* memory, size_t bytes) { ::operator delete(memory, Alignment(bytes)); }

Product ProductInUse() { return InUse()->product; }

const CoarseLoops& LoopsInUse() { return InUse()->loops(); }

std::vector<std::string> CoarseKernels() {
  std::vector<std::string> names;
  for (const Kernel& kernel : Available()) names.push_back(kernel.name);
  return names;
}

std::string CoarseKernel() { return InUse()->name; }

void UseCoarseKernel(const std::string& name) {
  for (const Kernel& kernel : Available()) {
    if (kernel.name != name) continue;
    InUse() = &kernel;
    return;
  }
  throw std::invalid_argument("no coarse kernel " + name);
}

}  // namespace ebmvk
