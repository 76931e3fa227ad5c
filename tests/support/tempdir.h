/* tempdir.h - a folder of its own for a test that writes files.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SUPPORT_TEMPDIR_H
#define TESTS_SUPPORT_TEMPDIR_H

#include <stddef.h>

enum { TEMPDIR_BYTES = 64 };

/* 0, or -1: what cmocka wants of a setup. */
int tempdir_make(char dir[TEMPDIR_BYTES]);
void tempdir_write(const char *dir, const char *name, const void *bytes, size_t n);
/* Removes the files named, those that are there, and the folder; -1: it holds others. */
int tempdir_remove(const char *dir, const char *const *names, size_t n);

#endif
