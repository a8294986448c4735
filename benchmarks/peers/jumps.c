/* Jumps written out, the bound for a single core: Gillespie's direct method for S + I -> 2 I,
   I -> R, and a jump diffusion by Euler-Maruyama steps that end on the jumps. */
#include <math.h>
#include <stdint.h>

/* xoshiro256++ (Blackman and Vigna, 2021), seeded by splitmix64. */
static uint64_t state[4];

static inline uint64_t rotated(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

static inline uint64_t next(void) {
    uint64_t result = rotated(state[0] + state[3], 23) + state[0], t = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= t;
    state[3] = rotated(state[3], 45);
    return result;
}

static inline double uniform(void) { return ((next() >> 11) + 0.5) * 0x1.0p-53; }

void seed(uint64_t x) {
    for (int i = 0; i < 4; i++) {
        uint64_t z = (x += 0x9e3779b97f4a7c15ULL);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        state[i] = z ^ (z >> 31);
    }
}

/* Saves (paths, saves, 3) at the given times; gives the number of jumps. */
long sir(int paths, const double *p, const double *u0, const double *times, int saves, double *out) {
    long jumps = 0;
    for (int k = 0; k < paths; k++) {
        double s = u0[0], i = u0[1], r = u0[2], t = 0.0;
        double *row = out + (long)k * saves * 3;
        int saved = 0;
        while (saved < saves) {
            double infection = p[0] * s * i, total = infection + p[1] * i;
            t -= log(uniform()) / total;
            for (; saved < saves && times[saved] < t; saved++, row += 3)
                row[0] = s, row[1] = i, row[2] = r;
            jumps++;
            if (uniform() * total < infection)
                s -= 1, i += 1;
            else
                i -= 1, r += 1;
        }
    }
    return jumps;
}

/* Two independent standard normal numbers (Box and Muller). */
static inline void normals(double *z) {
    double radius = sqrt(-2 * log(uniform())), angle = 6.283185307179586 * uniform();
    z[0] = radius * cos(angle), z[1] = radius * sin(angle);
}

/* du = A^T u^3 dt + noise u dW, u1 halved at a constant rate: the ends (paths, 2). */
void jump_diffusion(int paths, const double *a, const double *u0, double end, int steps,
                    double rate, double noise, double *out) {
    double dt = end / steps, z[2];
    for (int k = 0; k < paths; k++, out += 2) {
        double u = u0[0], v = u0[1], t = 0.0, alarm = -log(uniform()) / rate;
        for (int step = 0; step < steps;) {
            double stop = (step + 1) * dt;
            int jumps = alarm < stop;
            double h = (jumps ? alarm : stop) - t, spread = noise * sqrt(h);
            double x = u * u * u, y = v * v * v;
            normals(z);
            u += h * (a[0] * x + a[2] * y) + spread * u * z[0];
            v += h * (a[1] * x + a[3] * y) + spread * v * z[1];
            t += h;
            if (jumps)
                u /= 2, alarm -= log(uniform()) / rate;
            else
                step++;
        }
        out[0] = u, out[1] = v;
    }
}
