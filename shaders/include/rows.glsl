// Row-wise kernels: one workgroup per row of (rows, d) float32, stored as `quads` vec4 per row,
// zero beyond d.
#ifndef EBMVK_ROWS_GLSL
#define EBMVK_ROWS_GLSL
#include "math.glsl"
#include "reduce.glsl"

#define FOR_QUADS(q) for (uint q = gl_LocalInvocationIndex; q < quads; q += GROUP)
#define ROW (gl_WorkGroupID.x * quads)

#endif
