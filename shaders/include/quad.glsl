// Four coordinates of a point as the variant stores them. Halves are packed into words and unpacked
// to float32 for all computations. This needs no feature of the device (half types in buffers would
// need storageBuffer16BitAccess), so every device has the variant. It costs nothing, either: a quad
// is one load of 8 bytes, and a compiler would convert half types in the same way and fold this
// into mixed-precision FMAs if the device has them.
#ifndef EBMVK_QUAD_GLSL
#define EBMVK_QUAD_GLSL

#ifdef FLOAT16
#define QUAD uvec2
vec4 decode(uvec2 quad) { return vec4(unpackHalf2x16(quad.x), unpackHalf2x16(quad.y)); }
#else
#define QUAD vec4
vec4 decode(vec4 quad) { return quad; }
#endif

#endif
