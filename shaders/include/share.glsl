// Divides work between the invocations of a dispatch.
#ifndef EBMVK_SHARE_GLSL
#define EBMVK_SHARE_GLSL

// Begin and end of the invocation's own share of `count` elements. Shares are contiguous and in the
// order of the invocations, over all workgroups.
uvec2 own_share(uint count) {
    uint invocations = GROUP * gl_NumWorkGroups.x;
    uint each = (count + invocations - 1u) / invocations;
    uint begin = min((gl_WorkGroupID.x * GROUP + gl_LocalInvocationIndex) * each, count);
    return uvec2(begin, min(begin + each, count));
}

#endif
