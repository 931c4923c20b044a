// Sums over segments of sorted entries. One dispatch may add just a window of the entries.
//
// interface.glsl must define window, starts, entries. window: first entry, end of the entries, first
// segment, 1 to start from zero (otherwise sums continue).
#ifndef EBMVK_WINDOW_GLSL
#define EBMVK_WINDOW_GLSL

// The first place from `low` up to `high` whose entry is at least `least`; entries of a segment
// ascend.
uint place_of(uint low, uint high, uint least) {
    while (low < high) {
        uint middle = (low + high) >> 1;
        if (entries[middle] < least)
            low = middle + 1u;
        else
            high = middle;
    }
    return low;
}

// Begin and end of the window's places in a segment.
uvec2 places_of(uint segment) {
    uint begin = starts[segment];
    uint end = starts[segment + 1u];
    if (window[0] != 0u) begin = place_of(begin, end, window[0]);
    if (window[1] != 0xffffffffu) end = place_of(begin, end, window[1]);
    return uvec2(begin, end);
}

#endif
