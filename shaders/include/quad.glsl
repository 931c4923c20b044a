// Four coordinates of a point as the variant stores them. Halves come packed in words and are unpacked to float32, in
// which everything is computed: that needs no feature of the device, so that every device has the variant, where half
// types in buffers would need storageBuffer16BitAccess. It costs nothing either: a quad is one load of 8 bytes, and the
// conversions are what the compiler would make of a half type, folded into mixed-precision FMAs where there are any.
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
