#include "cpu/coarse_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/coarse.h"
#include "cpu/coarse_loops.h"
#include "cpu/thread_pool.h"

#if EBMVK_COARSE
namespace ebmvk {
CoarsePoints::CoarsePoints(const float* points, size_t n, size_t d)
    : n_(n),
      d_(d),
      blocks_((d + kBlock - 1) / kBlock),
      packed_((n + kPanel - 1) / kPanel * kPanel * blocks_ * kBlock, 128),
      step_(n),
      residual_(n),
      norm_(n),
      squares_((n + kPanel - 1) / kPanel, SpanSquares{}) {
  const CoarseLoops& loops = LoopsInUse();
  SharedPool().Run((n + kPanel - 1) / kPanel, [&](size_t panel, size_t) {
    std::vector<int8_t> code(blocks_ * kBlock, 0);
    for (size_t c = 0; c < std::min(kPanel, n - panel * kPanel); ++c) {
      const size_t point = panel * kPanel + c;
      const Rounded row = loops.round_row(points + point * d, d, false, code.data());
      step_[point] = row.step;
      residual_[point] = row.residual;
      norm_[point] = std::max(row.norm, row.rounded_norm);
      RaiseSquares(code.data(), blocks_, squares_[panel]);
      uint8_t* to = packed_.data() + (panel * blocks_ * kBlock * kPanel) + c * 4;
      for (size_t i = 0; i < code.size(); i += 4, to += kPanel * 4) {
        uint32_t four;
        std::memcpy(&four, &code[i], 4);
        four ^= 0x80808080u;  // + 128 in each byte
        std::memcpy(to, &four, 4);
      }
    }
  });
}

const uint8_t* CoarsePoints::panel(size_t p) const { return packed_.data() + p * blocks_ * kBlock * kPanel; }

CoarseQueries::CoarseQueries(const float* queries, size_t rows, size_t d) : step(rows), residual(rows), norm(rows) {
  const size_t tiles = (rows + kTile - 1) / kTile, blocks = (d + kBlock - 1) / kBlock;
  const bool narrow = !ProductInUse();
  const CoarseLoops& loops = LoopsInUse();
  if (narrow) avx2 = Avx2Queries(tiles, blocks);
  packed.resize(tiles * blocks * kTile * kBlock);
  start.resize(tiles * kTile * 16);
  SharedPool().Run(tiles, [&](size_t tile, size_t) {
    std::vector<int8_t> code(blocks * kBlock, 0);
    for (size_t row = tile * kTile; row < std::min(rows, (tile + 1) * kTile); ++row) {
      const Rounded rounded = loops.round_row(queries + row * d, d, narrow, code.data());
      step[row] = rounded.step;
      residual[row] = rounded.residual;
      norm[row] = rounded.norm;
      int8_t* to = packed.data() + (tile * blocks * kTile + row % kTile) * kBlock;
      int32_t sum = 0;
      for (size_t block = 0; block < blocks; ++block)
        std::memcpy(to + block * kTile * kBlock, &code[block * kBlock], kBlock);
      for (const int8_t value : code) sum += value;
      if (narrow) avx2.Set(row, code.data());
      std::fill_n(&start[row * 16], 16, -128 * sum);
    }
  });
}

}  // namespace ebmvk
#endif
