// Sums over the invocations before the calling one. GROUP is at most 256.
#ifndef EBMVK_PREFIX_GLSL
#define EBMVK_PREFIX_GLSL

shared uint prefix_part[256];

// The sum of `value` over the workgroup's invocations with a lower index. Call it once per
// invocation.
uint sum_before(uint value) {
    uint me = gl_LocalInvocationIndex;
    prefix_part[me] = value;
    barrier();
    for (uint reach = 1u; reach < GROUP; reach <<= 1) {
        uint below = me >= reach ? prefix_part[me - reach] : 0u;
        barrier();
        prefix_part[me] += below;
        barrier();
    }
    return prefix_part[me] - value;
}

#endif
