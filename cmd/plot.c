/* SPDX-License-Identifier: Apache-2.0 */
#include "plot.h"

#include <math.h>
#include <stdio.h>

enum { WIDTH = 860, HEIGHT = 480, LEFT = 80, RIGHT = 170, TOP = 64, BOTTOM = 60 };

static const char *const colors[PLOT_SERIES_MAX] = {"#0b6e99", "#c2571a", "#6b7280", "#8a1c7c",
                                                    "#2f7d32", "#b8860b", "#444444", "#d6336c"};

struct axes {
    double x_max, y_min, y_max;
    bool log_y;
};

static struct axes find_axes(const struct plot *p)
{
    struct axes a = {.x_max = 0, .y_min = INFINITY, .y_max = 0, .log_y = p->log_y};
    for (int s = 0; s < p->n_series; s++)
        for (int i = 0; i < p->series[s].n; i++) {
            a.x_max = fmax(a.x_max, p->series[s].x[i]);
            a.y_min = fmin(a.y_min, p->series[s].y[i]);
            a.y_max = fmax(a.y_max, p->series[s].y[i]);
        }
    if (p->y_max > 0 && a.y_max > p->y_max)
        a.y_max = p->y_max;
    if (!(a.x_max > 0))
        a.x_max = 1;
    if (p->log_y) {
        a.y_min = pow(10, floor(log10(a.y_min > 0 && isfinite(a.y_min) ? a.y_min : 1)));
        a.y_max = pow(10, ceil(log10(a.y_max > a.y_min ? a.y_max : a.y_min * 10)));
    } else {
        a.y_min = 0;
        a.y_max = a.y_max > 0 ? a.y_max * 1.05 : 1;
    }
    return a;
}

static double at_x(const struct axes *a, double x)
{
    return LEFT + x / a->x_max * (WIDTH - LEFT - RIGHT);
}

static double at_y(const struct axes *a, double y)
{
    y = fmin(fmax(y, a->y_min), a->y_max);
    double part = a->log_y ? (log10(y) - log10(a->y_min)) / (log10(a->y_max) - log10(a->y_min))
                           : y / a->y_max;
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM);
}

static void put_text(FILE *f, double x, double y, const char *anchor, const char *style,
                     const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" %s>", x, y, anchor, style);
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else
            fputc(*text, f);
    }
    fputs("</text>\n", f);
}

/* 1, 2 or 5 times a power of ten: about n steps to x. */
static double tick_step(double x, int n)
{
    double raw = x / n, unit = pow(10, floor(log10(raw)));
    return unit * (raw / unit > 5 ? 10 : raw / unit > 2 ? 5 : raw / unit > 1 ? 2 : 1);
}

static void put_tick_y(FILE *f, const struct axes *a, double y)
{
    char label[32];
    snprintf(label, sizeof label, "%g", y);
    fprintf(f, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", LEFT,
            WIDTH - RIGHT, at_y(a, y), at_y(a, y));
    put_text(f, LEFT - 8, at_y(a, y) + 4, "end", "", label);
}

static void put_axes(FILE *f, const struct plot *p, const struct axes *a)
{
    if (a->log_y)
        for (double y = a->y_min; y <= a->y_max * 1.001; y *= 10)
            put_tick_y(f, a, y);
    else
        for (double y = 0, d = tick_step(a->y_max, 6); y <= a->y_max; y += d)
            put_tick_y(f, a, y);
    for (double x = 0, d = tick_step(a->x_max, 8); x <= a->x_max * 1.001; x += d) {
        char label[32];
        snprintf(label, sizeof label, "%g", x);
        put_text(f, at_x(a, x), HEIGHT - BOTTOM + 20, "middle", "", label);
    }
    fprintf(f, "<path d=\"M%d %d V%d H%d\" fill=\"none\" stroke=\"#333\"/>\n", LEFT, TOP,
            HEIGHT - BOTTOM, WIDTH - RIGHT);
    put_text(f, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 16, "middle", "", p->x_label);
    fprintf(f, "<g transform=\"rotate(-90 20 %d)\">", (TOP + HEIGHT - BOTTOM) / 2);
    put_text(f, 20, (TOP + HEIGHT - BOTTOM) / 2.0, "middle", "", p->y_label);
    fputs("</g>\n", f);
}

static void put_series(FILE *f, const struct plot *p, const struct axes *a, int s)
{
    const struct plot_series *line = &p->series[s];
    fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colors[s]);
    for (int i = 0; i < line->n; i++)
        fprintf(f, "%.1f,%.1f ", at_x(a, line->x[i]), at_y(a, line->y[i]));
    fputs("\"/>\n", f);
    for (int i = 0; i < line->n; i++)
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", at_x(a, line->x[i]),
                at_y(a, line->y[i]), colors[s]);
    double y = TOP + 14 + s * 22;
    fprintf(f,
            "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
            "stroke-width=\"3\"/>\n",
            WIDTH - RIGHT + 16, WIDTH - RIGHT + 40, y, y, colors[s]);
    put_text(f, WIDTH - RIGHT + 48, y + 4, "start", "", line->name);
}

bool plot_write(const struct plot *p, const char *path)
{
    struct axes a = find_axes(p);
    FILE *f = fopen(path, "w");
    if (!f)
        return false;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_text(f, LEFT, 26, "start", "font-size=\"17\" font-weight=\"bold\"", p->title);
    put_text(f, LEFT, 46, "start", "fill=\"#555\"", p->subtitle);
    put_axes(f, p, &a);
    for (int s = 0; s < p->n_series; s++)
        put_series(f, p, &a, s);
    fputs("</svg>\n", f);
    bool failed = ferror(f) != 0;
    return fclose(f) == 0 && !failed;
}
