// Finds where a segment of sorted entries begins: entries of one segment have the same key and, if
// per_token is not 0, the same token.
//
// interface.glsl must define params, keys, tokens, order; and the push constants limit, per_token.
#ifndef EBMVK_SEGMENTS_GLSL
#define EBMVK_SEGMENTS_GLSL
#include "prefix.glsl"
#include "share.glsl"

// Entries with keys from `limit` on belong to no segment; they are the last.
bool in_segment(uint place) { return keys[order[place]] < limit; }

bool begins_segment(uint place) {
    if (!in_segment(place)) return false;
    if (place == 0u) return true;
    uint entry = order[place];
    uint before = order[place - 1u];
    if (keys[entry] != keys[before]) return true;
    return per_token != 0u && tokens[entry / per_token] != tokens[before / per_token];
}

#endif
