/* Lotka-Volterra by Tsit5 in plain C: what the hardware allows for this algorithm.
 *
 * Tsitouras, Computers & Mathematics with Applications 62 (2011) 770-775: tableau, embedded error and
 * the fourth-order interpolant. PI controller and first step as in Hairer, Norsett & Wanner, Solving
 * ODEs I, II.4. The vector field is inlined, so this is a bound no general library meets in full.
 */
#include <math.h>

enum { N = 2 };

static const double SAFETY = 0.9, MIN_FACTOR = 0.2, MAX_FACTOR = 10.0;
static const double BETA1 = 7.0 / 50.0, BETA2 = 2.0 / 25.0; /* Tsit5's, as in OrdinaryDiffEq.jl */
static const double ORDER = 5.0;

static const double A21 = 0.161;
static const double A31 = -0.008480655492356989, A32 = 0.335480655492357;
static const double A41 = 2.8971530571054935, A42 = -6.359448489975075, A43 = 4.3622954328695815;
static const double A51 = 5.325864828439257, A52 = -11.748883564062828, A53 = 7.4955393428898365,
                    A54 = -0.09249506636175525;
static const double A61 = 5.86145544294642, A62 = -12.92096931784711, A63 = 8.159367898576159,
                    A64 = -0.071584973281401, A65 = -0.028269050394068383;
static const double B1 = 0.09646076681806523, B2 = 0.01, B3 = 0.4798896504144996,
                    B4 = 1.379008574103742, B5 = -3.290069515436081, B6 = 2.324710524099774;
static const double E1 = -0.00178001105222577714, E2 = -0.0008164344596567469,
                    E3 = 0.007880878010261995, E4 = -0.1447110071732629, E5 = 0.5823571654525552,
                    E6 = -0.45808210592918697, E7 = 1.0 / 66.0;

static inline void field(const double *p, const double *u, double *du)
{
    du[0] = p[0] * u[0] - p[1] * u[0] * u[1];
    du[1] = -p[2] * u[1] + p[3] * u[0] * u[1];
}

static inline double scaled_norm(const double *x, const double *u, const double *v, double tol)
{
    double sum = 0.0;
    for (int i = 0; i < N; i++) {
        double scaled = x[i] / (tol + tol * fmax(fabs(u[i]), fabs(v[i])));
        sum += scaled * scaled;
    }
    return sqrt(sum / N);
}

static double first_step(const double *p, const double *u, const double *du, double tol)
{
    double d0 = scaled_norm(u, u, u, tol), d1 = scaled_norm(du, u, u, tol);
    double h0 = (d0 < 1e-5 || d1 < 1e-5) ? 1e-6 : 0.01 * d0 / d1;
    double moved[N], slope[N], change[N];
    for (int i = 0; i < N; i++) moved[i] = u[i] + h0 * du[i];
    field(p, moved, slope);
    for (int i = 0; i < N; i++) change[i] = slope[i] - du[i];
    double d2 = scaled_norm(change, u, u, tol) / h0, largest = fmax(d1, d2);
    double h1 = largest <= 1e-15 ? fmax(1e-6, 1e-3 * h0) : pow(0.01 / largest, 1.0 / ORDER);
    return fmin(100.0 * h0, h1);
}

static inline void interpolate(double x, double h, const double *u, double k[7][N], double *out)
{
    double x2 = x * x;
    double b1 = -1.0530884977290216 * x * (x - 1.3299890189751412) *
                (x2 - 1.4364028541716351 * x + 0.7139816917074209);
    double b2 = 0.1017 * x2 * (x2 - 2.1966568338249754 * x + 1.2949852507374631);
    double b3 = 2.490627285651252793 * x2 * (x2 - 2.38535645472061657 * x + 1.57803468208092486);
    double b4 = -16.54810288924490272 * (x - 1.21712927295533244) * (x - 0.61620406037800089) * x2;
    double b5 = 47.37952196281928122 * (x - 1.203071208372362603) * (x - 0.658047292653547382) * x2;
    double b6 = -34.87065786149660974 * (x - 1.2) * (x - 0.666666666666666667) * x2;
    double b7 = 2.5 * (x - 1.0) * (x - 0.6) * x2;
    for (int i = 0; i < N; i++)
        out[i] = u[i] + h * (b1 * k[0][i] + b2 * k[1][i] + b3 * k[2][i] + b4 * k[3][i] +
                             b5 * k[4][i] + b6 * k[5][i] + b7 * k[6][i]);
}

/* One step: fills k[1..6] and `next`, returns the scaled error. k[0] is the field at u. */
static inline double step(const double *p, double h, const double *u, double k[7][N], double *next,
                          double tol)
{
    double v[N], error[N];
    for (int i = 0; i < N; i++) v[i] = u[i] + h * A21 * k[0][i];
    field(p, v, k[1]);
    for (int i = 0; i < N; i++) v[i] = u[i] + h * (A31 * k[0][i] + A32 * k[1][i]);
    field(p, v, k[2]);
    for (int i = 0; i < N; i++) v[i] = u[i] + h * (A41 * k[0][i] + A42 * k[1][i] + A43 * k[2][i]);
    field(p, v, k[3]);
    for (int i = 0; i < N; i++)
        v[i] = u[i] + h * (A51 * k[0][i] + A52 * k[1][i] + A53 * k[2][i] + A54 * k[3][i]);
    field(p, v, k[4]);
    for (int i = 0; i < N; i++)
        v[i] = u[i] + h * (A61 * k[0][i] + A62 * k[1][i] + A63 * k[2][i] + A64 * k[3][i] +
                           A65 * k[4][i]);
    field(p, v, k[5]);
    for (int i = 0; i < N; i++)
        next[i] = u[i] + h * (B1 * k[0][i] + B2 * k[1][i] + B3 * k[2][i] + B4 * k[3][i] +
                              B5 * k[4][i] + B6 * k[5][i]);
    field(p, next, k[6]);
    for (int i = 0; i < N; i++)
        error[i] = h * (E1 * k[0][i] + E2 * k[1][i] + E3 * k[2][i] + E4 * k[3][i] + E5 * k[4][i] +
                        E6 * k[5][i] + E7 * k[6][i]);
    return scaled_norm(error, u, next, tol);
}

/* Solves from saves[0] to saves[n_saves - 1]; returns the number of steps tried. */
static int solve_one(const double *p, const double *u0, const double *saves, int n_saves, double tol,
                     double *out)
{
    double u[N], next[N], k[7][N];
    double t = saves[0], end = saves[n_saves - 1], previous = 1e-4;
    int tried = 0, saved = 1;
    for (int i = 0; i < N; i++) out[i] = u[i] = u0[i];
    field(p, u, k[0]);
    double h = first_step(p, u, k[0], tol);
    while (t < end) {
        double last = t + h >= end, size = last ? end - t : h;
        double error = fmax(step(p, size, u, k, next, tol), 1e-10);
        tried++;
        double growth = SAFETY * pow(error, -BETA1);
        if (error > 1.0) {
            h = size * fmax(MIN_FACTOR, growth);
            continue;
        }
        double t_next = last ? end : t + size;
        for (; saved < n_saves && saves[saved] <= t_next; saved++)
            interpolate((saves[saved] - t) / size, size, u, k, out + N * saved);
        h = size * fmin(MAX_FACTOR, fmax(MIN_FACTOR, growth * pow(previous, BETA2)));
        previous = fmax(error, 1e-4);
        t = t_next;
        for (int i = 0; i < N; i++) u[i] = next[i], k[0][i] = k[6][i];
    }
    return tried;
}

/* `lanes` trajectories one after the other: p is (lanes, 4), out is (lanes, n_saves, 2). */
int solve(const double *p, int lanes, const double *u0, const double *saves, int n_saves, double tol,
          double *out)
{
    int tried = 0;
    for (int lane = 0; lane < lanes; lane++)
        tried += solve_one(p + 4 * lane, u0, saves, n_saves, tol, out + (long)N * n_saves * lane);
    return tried;
}
