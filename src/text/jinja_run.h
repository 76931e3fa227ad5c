/* jinja_run.h - what the parts of the evaluator share: expressions, statements, calls.
 *
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_TEXT_JINJA_RUN_H
#define SL_TEXT_JINJA_RUN_H

#include "text/jinja.h"

struct jmacro {
    const struct node *node; /* N_MACRO or N_CALLBLOCK */
    struct env *env;         /* around it */
};

struct jval jeval(struct jrt *rt, const struct node *n);
struct jval *jslot(struct jrt *rt, struct slot s);
void jassign(struct jrt *rt, const struct node *target, struct jval v);
void jcheck_targets(struct jrt *rt, const struct node *target);
/* A filter; where its chain has no value to begin with (set and filter blocks) it gets `text`. */
struct jval jeval_filter(struct jrt *rt, const struct node *n, struct jval text);
/* spare_kw: room for so many more keywords behind what is returned */
struct jargs jeval_args(struct jrt *rt, const struct call_args *a, size_t spare_kw);

enum jflow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };
enum jflow jexec(struct jrt *rt, const struct nodes *body);
enum jflow jexec_for(struct jrt *rt, const struct node *n);
struct jval jloop_call(struct jrt *rt, struct jval loop, const struct jargs *args);
struct jval jloop_cycle(struct jrt *rt, struct jval loop, const struct jargs *args);
struct jval jloop_changed(struct jrt *rt, struct jval loop, const struct jargs *args);
struct jval jmacro_call(struct jrt *rt, struct jval macro, const struct jargs *args);
struct jval jblock_call(struct jrt *rt, const struct node *block);
void jenter_scope(struct jrt *rt, const struct scope *s);
void jleave_scope(struct jrt *rt, const struct scope *s);
struct env *jenv_new(struct jrt *rt, const struct func *f, struct env *up);
struct jval jresolve(struct jrt *rt, struct jstr *name); /* a variable of the context */

/* Output from `mark` on becomes a string and leaves the output. */
size_t jcapture(struct jrt *rt);
struct jval jcaptured(struct jrt *rt, size_t mark);

#endif
