/* The form of an element in a manifest: can numpy read it?
 *
 *     form   := order '[' axes ']' dtype              C[480, 640, 3]'|u1'
 *     dtype  := type | '[' field, … ']' | '(' dtype ',' shape ')'
 *     field  := '(' name ',' dtype [',' shape] ')'    name := string | '(' string ',' string ')'
 *     type   := string of: order, kind, bytes, and the unit of a time
 *
 * These are Python literals, as numpy.lib.format.dtype_to_descr gives them. A receiver has a dtype for each form that
 * passes, and refuses the others by name. The check allocates nothing and does not need Python.
 */
#ifndef AIFLOW_FORM_H
#define AIFLOW_FORM_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define AF_FORM_DEPTH 32 /* of nested structs */
#define AF_FORM_AXES 32  /* numpy 1 has this many */

struct af_form {
	const uint8_t *at, *end;
};

static inline bool
af_form_take(struct af_form *f, uint8_t c)
{
	while (f->at < f->end && *f->at == ' ')
		f->at++;
	if (f->at == f->end || *f->at != c)
		return false;
	f->at++;
	return true;
}

static inline bool
af_form_number(struct af_form *f, uint64_t *value)
{
	uint32_t digits = 0;

	while (f->at < f->end && *f->at == ' ')
		f->at++;
	for (*value = 0; f->at < f->end && *f->at >= '0' && *f->at <= '9' && digits < 18; digits++)
		*value = *value * 10 + (uint64_t)(*f->at++ - '0');
	return digits > 0;
}

/* Numbers up to `close`, separated by commas; a trailing comma is allowed. */
static inline bool
af_form_axes(struct af_form *f, uint8_t close)
{
	uint64_t value;

	for (uint32_t axes = 0; !af_form_take(f, close); axes++) {
		if (axes == AF_FORM_AXES || !af_form_number(f, &value))
			return false;
		if (!af_form_take(f, ','))
			return af_form_take(f, close);
	}
	return true;
}

/* A string literal; `text` becomes its content. */
static inline bool
af_form_string(struct af_form *f, struct af_form *text)
{
	uint8_t quote;

	while (f->at < f->end && *f->at == ' ')
		f->at++;
	if (f->at == f->end || (*f->at != '\'' && *f->at != '"'))
		return false;
	quote = *f->at++;
	for (text->at = f->at; f->at < f->end && *f->at != quote; f->at++)
		if (*f->at == '\\' && ++f->at == f->end)
			return false;
	text->end = f->at;
	return af_form_take(f, quote);
}

static inline bool
af_form_unit(struct af_form *f)
{
	if (f->at == f->end)
		return true;
	if (*f->at++ != '[')
		return false;
	while (f->at < f->end && ((*f->at >= 'a' && *f->at <= 'z') || (*f->at >= 'A' && *f->at <= 'Z') ||
				  (*f->at >= '0' && *f->at <= '9')))
		f->at++;
	return f->end - f->at == 1 && *f->at == ']';
}

/* '<f4': the kind, and a size that it has. */
static inline bool
af_form_type(struct af_form f)
{
	static const struct {
		char kind;
		uint64_t sizes; /* bit n: n bytes; 0: any */
	} known[] = {{'b', 1 << 1},
		     {'i', 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8},
		     {'u', 1 << 1 | 1 << 2 | 1 << 4 | 1 << 8},
		     {'f', 1 << 2 | 1 << 4 | 1 << 8 | 1 << 16},
		     {'c', 1ull << 8 | 1ull << 16 | 1ull << 32},
		     {'M', 1 << 8},
		     {'m', 1 << 8},
		     {'S', 0},
		     {'U', 0},
		     {'V', 0}};
	uint64_t nbytes;
	char kind;

	if (f.end - f.at < 3 || !memchr("<>|=", *f.at, 4) || f.at[2] == ' ')
		return false;
	kind = (char)f.at[1];
	f.at += 2;
	if (!af_form_number(&f, &nbytes))
		return false;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (known[i].kind == kind)
			return (!known[i].sizes || (nbytes < 64 && known[i].sizes >> nbytes & 1)) &&
			       (kind == 'M' || kind == 'm' ? af_form_unit(&f) : f.at == f.end);
	return false;
}

static inline bool
af_form_dtype(struct af_form *f, uint32_t depth)
{
	struct af_form text;

	if (depth == AF_FORM_DEPTH)
		return false;
	if (af_form_string(f, &text))
		return af_form_type(text);
	if (af_form_take(f, '('))
		return af_form_dtype(f, depth + 1) && af_form_take(f, ',') && af_form_take(f, '(') &&
		       af_form_axes(f, ')') && af_form_take(f, ')');
	if (!af_form_take(f, '['))
		return false;
	while (!af_form_take(f, ']')) {
		if (!af_form_take(f, '('))
			return false;
		if (af_form_take(f, '(')) {
			if (!af_form_string(f, &text) || !af_form_take(f, ',') || !af_form_string(f, &text) ||
			    !af_form_take(f, ')'))
				return false;
		} else if (!af_form_string(f, &text)) {
			return false;
		}
		if (!af_form_take(f, ',') || !af_form_dtype(f, depth + 1))
			return false;
		if (af_form_take(f, ',') && !(af_form_take(f, '(') && af_form_axes(f, ')')))
			return false;
		if (!af_form_take(f, ')'))
			return false;
		if (!af_form_take(f, ','))
			return af_form_take(f, ']');
	}
	return true;
}

static inline bool
af_form_is_known(const uint8_t *form, uint32_t len)
{
	struct af_form f = {form, form + len};

	return (af_form_take(&f, 'C') || af_form_take(&f, 'F')) && af_form_take(&f, '[') && af_form_axes(&f, ']') &&
	       af_form_dtype(&f, 0) && f.at == f.end;
}

#endif
