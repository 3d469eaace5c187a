/* form.h: the forms of elements that numpy can read, and all others. */
#include "aiflow/wire/form.h"

#include "check.h"

static bool
known(const char *form)
{
	uint32_t len = (uint32_t)strlen(form);
	uint8_t *bytes = malloc(len ? len : 1); /* of this length: the sanitizer sees a read beyond it */
	bool answer;

	memcpy(bytes, form, len);
	answer = af_form_is_known(bytes, len);
	free(bytes);
	return answer;
}

static const char *const accepted[] = {
	"C[480, 640, 3]'|u1'",
	"F[2, 3]'<f4'",
	"C[]'<f8'",
	"C[0]'|b1'",
	"C[5,]'<i2'",
	"C[1]\"<u4\"",
	"C[1]'<f2'",
	"C[1]'<f16'",
	"C[1]'>c8'",
	"C[1]'<c16'",
	"C[1]'<c32'",
	"C[1]'<M8[ns]'",
	"C[1]'<m8[25s]'",
	"C[1]'<m8'",
	"C[1]'|S7'",
	"C[1]'<U3'",
	"C[1]'|V0'",
	"C[1]'=i8'",
	"C[1][('a', '<f4'), ('b', '|u1')]",
	"C[1][('a', '<f4', (2, 3))]",
	"C[1][(('title', 'a'), '<f4')]",
	"C[1][('a', [('b', '<i8')])]",
	"C[1]('<f4', (3,))",
	"C[1][]",
	"C[1][('it\\'s', '<f4')]",
	"C[ 1 , 2 ] '<f4'",
};

static const char *const refused[] = {
	"",
	"C",
	"C[",
	"C[]",
	"X[1]'<f4'",
	"C[1]'<f4' ",
	"C[1]'<f4'x",
	"C[1]<f4",
	"C[1]'<f3'",
	"C[1]'<f32'",
	"C[1]'<i16'",
	"C[1]'<b2'",
	"C[1]'<c4'",
	"C[1]'f4'",
	"C[1]'!f4'",
	"C[1]'|O8'",
	"C[1]'|O'",
	"C[1]'<x4'",
	"C[1]'<f'",
	"C[1]'<f 4'",
	"C[1]'<f4[ns]'",
	"C[1]'<M8[ns'",
	"C[1]'<M8[n s]'",
	"C[1]'<M8ns'",
	"C[1]'<M4[ns]'",
	"C[-1]'<f4'",
	"C[1 2]'<f4'",
	"C[,1]'<f4'",
	"C[1,,2]'<f4'",
	"C[1)'<f4'",
	"C[1234567890123456789]'<f4'",
	"C[1][('a', '<f4')",
	"C[1][('a' '<f4')]",
	"C[1][('a',)]",
	"C[1][(a, '<f4')]",
	"C[1][(('t', 'a', 'x'), '<f4')]",
	"C[1][('a', '<f4', 2)]",
	"C[1]('<f4')",
	"C[1]('<f4', 3)",
	"C[1]{'names': []}",
	"C[1]'<f4",
	"C[1]'<f4\\",
	"C[1]'<f4\"",
};

static void
forms_of_numpy_are_known(void)
{
	for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
		if (!known(accepted[i]))
			fprintf(stderr, "%s\n", accepted[i]);
		CHECK(known(accepted[i]));
	}
}

static void
all_others_are_not(void)
{
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
		if (known(refused[i]))
			fprintf(stderr, "%s\n", refused[i]);
		CHECK(!known(refused[i]));
	}
}

static void
no_beginning_of_a_form_is_one(void)
{
	for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
		char part[100];

		for (size_t len = 0; len < strlen(accepted[i]); len++) {
			memcpy(part, accepted[i], len);
			part[len] = 0;
			CHECK(!known(part));
		}
	}
}

static void
depth_and_axes_are_bounded(void)
{
	char form[4000];

	for (int depth = 1; depth <= AF_FORM_DEPTH + 2; depth++) {
		char *at = form + sprintf(form, "C[]");

		for (int i = 1; i < depth; i++)
			at += sprintf(at, "[('a', ");
		at += sprintf(at, "'<f4'");
		for (int i = 1; i < depth; i++)
			at += sprintf(at, ")]");
		CHECK_EQUAL(known(form), depth <= AF_FORM_DEPTH);
	}
	for (int axes = 1; axes <= AF_FORM_AXES + 2; axes++) {
		char *at = form + sprintf(form, "C[1");

		for (int i = 1; i < axes; i++)
			at += sprintf(at, ", 1");
		sprintf(at, "]'<f4'");
		CHECK_EQUAL(known(form), axes <= AF_FORM_AXES);
	}
	memset(form, '[', sizeof form - 1); /* no recursion without a bound */
	form[0] = 'C';
	form[sizeof form - 1] = 0;
	CHECK(!known(form));
	memset(form + 3, '(', sizeof form - 4);
	form[2] = ']';
	CHECK(!known(form));
}

static void
numbers_and_strings_end_where_they_should(void)
{
	const uint8_t text[] = "  123456789012345678901'a\\'b'";
	struct af_form f = {text, text + sizeof text - 1}, inside;
	uint64_t value;

	CHECK(af_form_number(&f, &value));
	CHECK_EQUAL(value, 123456789012345678); /* 18 digits: more would overflow */
	f.at = text + 23;
	CHECK(af_form_string(&f, &inside));
	CHECK_EQUAL(inside.end - inside.at, 4);
	CHECK(f.at == f.end);
	CHECK(!af_form_take(&f, 'x') && !af_form_number(&f, &value) && !af_form_string(&f, &inside));
}

CASES(CASE(forms_of_numpy_are_known), CASE(all_others_are_not), CASE(no_beginning_of_a_form_is_one),
      CASE(depth_and_axes_are_bounded), CASE(numbers_and_strings_end_where_they_should))
