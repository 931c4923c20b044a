// Products of 8-bit codes, with one routine per instruction set. The rest of the coarse top-k is
// common to all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define EBMVK_COARSE 1
// The instructions that all these processors have; the loops around the products use them, too.
#define EBMVK_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#else
#define EBMVK_AVX512
#endif

namespace ebmvk {

// Memory that begins at a cache line, because loading a tile that straddles lines takes over three
// times as long. Large blocks ask for huge pages if the system has them. Throws std::bad_alloc.
void* AllocateLines(size_t bytes);
void FreeLines(void* memory, size_t bytes);

// A vector in such memory; elements are initialised only if a value is given.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(AllocateLines(n * sizeof(T))); }
  void deallocate(T* memory, size_t n) { FreeLines(memory, n * sizeof(T)); }
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <class U, class... Args>
  void construct(U* at, Args&&... args) {
    ::new (static_cast<void*>(at)) U(std::forward<Args>(args)...);
  }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using LineVector = std::vector<T, LineAllocator<T>>;

// Shapes of the packed codes, so that both routines read contiguous memory.
constexpr size_t kPanel = 32;   // points: panel[block][16 quads][kPanel][4], unsigned: code + 128
constexpr size_t kTile = 32;    // queries: tile[block][kTile][kBlock], signed
constexpr size_t kBlock = 64;   // coordinates; padding has code 0
constexpr size_t kStrip = 128;  // queries per call; their products stay in the first-level cache

// For rows 0 .. rows-1 (at most kStrip, the tiles one after another) and all points of a panel:
//   product[row][point] = start[row][any of 16] + sum over coordinates of query code * point byte.
// May write up to whole tiles. All memory begins at a cache line.
using Product = void (*)(const int8_t* queries, const uint8_t* panel, const int32_t* start, size_t blocks, size_t rows,
                         int32_t* product);

// The routine in use; null without one, and for "avx2", which needs more arguments (coarse_avx2.h).
Product ProductInUse();

// The other loops of the kernel in use, which must not be "none".
struct CoarseLoops;
const CoarseLoops& LoopsInUse();

}  // namespace ebmvk
