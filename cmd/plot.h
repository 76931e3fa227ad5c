/* plot.h - lines over two axes, as SVG that a browser or a README shows.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CMD_PLOT_H
#define CMD_PLOT_H

#include <stdbool.h>

enum { PLOT_SERIES_MAX = 8, PLOT_POINTS_MAX = 64 };

struct plot_series {
    const char *name;
    int n;
    double x[PLOT_POINTS_MAX], y[PLOT_POINTS_MAX];
};

struct plot {
    const char *title, *subtitle, *x_label, *y_label;
    bool log_y;   /* else from 0 */
    double y_max; /* points above are drawn at the edge; 0: none are */
    int n_series;
    struct plot_series series[PLOT_SERIES_MAX];
};

/* false: the file could not be written (errno). */
bool plot_write(const struct plot *p, const char *path);

#endif
