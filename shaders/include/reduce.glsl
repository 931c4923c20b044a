// Sums and maxima over a workgroup; every invocation gets the same result. GROUP is the workgroup's
// size, a multiple of the subgroup's if subgroup arithmetic is used. Two slots take turns, so that
// a slot can be overwritten without waiting: all invocations have passed the barrier of the other
// slot's reduction, which comes after their reads of this one.
#ifndef EBMVK_REDUCE_GLSL
#define EBMVK_REDUCE_GLSL

#ifdef USE_SUBGROUP  // one part per subgroup; a subgroup has at least 4 invocations (kernel_registry.cpp)
const uint REDUCE_PARTS = (GROUP + 3u) / 4u;
#else
const uint REDUCE_PARTS = GROUP;
#endif
shared vec4 reduce_slot[2][REDUCE_PARTS];
uint reduce_turn = 0u;

float greater(float a, float b) { return max(a, b); }
float plus(float a, float b) { return a + b; }
vec2 plus(vec2 a, vec2 b) { return a + b; }
vec3 plus(vec3 a, vec3 b) { return a + b; }
vec4 plus(vec4 a, vec4 b) { return a + b; }

#ifdef USE_SUBGROUP

#define GROUP_REDUCTION(NAME, TYPE, PARTS, SUBGROUP_OPERATION, COMBINE)                                            \
    TYPE NAME(TYPE value) {                                                                                        \
        TYPE part = SUBGROUP_OPERATION(value);                                                                     \
        if (gl_NumSubgroups == 1u) return part;                                                                    \
        uint turn = reduce_turn;                                                                                   \
        reduce_turn ^= 1u;                                                                                         \
        if (subgroupElect()) reduce_slot[turn][gl_SubgroupID].PARTS = part;                                        \
        barrier();                                                                                                 \
        TYPE total = reduce_slot[turn][0].PARTS;                                                                   \
        for (uint i = 1u; i < gl_NumSubgroups; ++i) total = COMBINE(total, reduce_slot[turn][i].PARTS);            \
        return total;                                                                                              \
    }

#else  // a tree in a fixed order

#define GROUP_REDUCTION(NAME, TYPE, PARTS, SUBGROUP_OPERATION, COMBINE)                                            \
    TYPE NAME(TYPE value) {                                                                                        \
        uint turn = reduce_turn;                                                                                   \
        reduce_turn ^= 1u;                                                                                         \
        uint me = gl_LocalInvocationIndex;                                                                         \
        reduce_slot[turn][me].PARTS = value;                                                                       \
        barrier();                                                                                                 \
        for (uint width = GROUP; width > 1u; width = (width + 1u) >> 1) {                                          \
            uint other = me + ((width + 1u) >> 1);                                                                 \
            if (other < width)                                                                                     \
                reduce_slot[turn][me].PARTS = COMBINE(reduce_slot[turn][me].PARTS, reduce_slot[turn][other].PARTS); \
            barrier();                                                                                             \
        }                                                                                                          \
        return reduce_slot[turn][0].PARTS;                                                                         \
    }

#endif

GROUP_REDUCTION(group_sum, float, x, subgroupAdd, plus)
GROUP_REDUCTION(group_sum, vec2, xy, subgroupAdd, plus)
GROUP_REDUCTION(group_sum, vec3, xyz, subgroupAdd, plus)
GROUP_REDUCTION(group_sum, vec4, xyzw, subgroupAdd, plus)
GROUP_REDUCTION(group_max, float, x, subgroupMax, greater)

#endif
