// Pairs of float32 whose sum is a number of about 48 bits, for devices without float64: x is the
// rounded number, y the rest. See ebmvk/compute/pairs.py.

vec2 two_sum(float a, float b) {
    precise float sum = a + b;
    precise float part = sum - a;
    precise float rest = (a - (sum - part)) + (b - part);
    return vec2(sum, rest);
}

vec2 quick_sum(float a, float b) {
    precise float sum = a + b;
    precise float rest = b - (sum - a);
    return vec2(sum, rest);
}

vec2 halves(float a) {
    precise float wide = a * 4097.0;
    precise float high = wide - (wide - a);
    precise float low = a - high;
    return vec2(high, low);
}

vec2 two_product(float a, float b) {
    precise float product = a * b;
    vec2 one = halves(a), other = halves(b);
    precise float rest = ((one.x * other.x - product) + one.x * other.y + one.y * other.x) + one.y * other.y;
    return vec2(product, rest);
}

vec2 plus(vec2 a, vec2 b) {
    vec2 sum = two_sum(a.x, b.x), small = two_sum(a.y, b.y);
    precise float first = sum.y + small.x;
    sum = quick_sum(sum.x, first);
    precise float second = sum.y + small.y;
    return quick_sum(sum.x, second);
}

vec2 minus(vec2 a, vec2 b) { return plus(a, -b); }

vec2 times(vec2 a, vec2 b) {
    vec2 product = two_product(a.x, b.x);
    precise float rest = product.y + (a.x * b.y + a.y * b.x);
    return quick_sum(product.x, rest);
}

vec2 over(vec2 a, vec2 b) {
    precise float first = a.x / b.x;
    vec2 rest = minus(a, times(b, vec2(first, 0.0)));
    precise float second = rest.x / b.x;
    rest = minus(rest, times(b, vec2(second, 0.0)));
    precise float third = rest.x / b.x;
    return plus(quick_sum(first, second), vec2(third, 0.0));
}
