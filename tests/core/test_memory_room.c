/* memory_room.h: what the limits of this process and of the system leave. */
#include "aiflow/rt/memory_room.h"

#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static char directory[] = "/tmp/memory_room-XXXXXX";

static const char *
path_of(const char *name)
{
	static char path[200];

	snprintf(path, sizeof path, "%s/%s", directory, name);
	return path;
}

static void
put(const char *name, const char *text)
{
	FILE *file = fopen(path_of(name), "w");

	CHECK(file && fputs(text, file) >= 0);
	fclose(file);
}

static void
begin(void)
{
	strcpy(directory + strlen("/tmp/memory_room-"), "XXXXXX");
	CHECK(mkdtemp(directory));
}

static void
end(void)
{
	static const char *const names[] = {
		"memory.max", "memory.current", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat",
		"file"};

	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		unlink(path_of(names[i]));
	CHECK(!rmdir(directory));
}

static void
a_number_is_found_by_its_key(void)
{
	uint64_t value = 7;

	begin();
	put("file", "MemTotal:       100 kB\nMemAvailable:    42 kB\nMemAvail 9\ninactive_file 12345678901234\n");
	CHECK(af_room_number(path_of("file"), "MemAvailable", &value));
	CHECK_EQUAL(value, 42);
	CHECK(af_room_number(path_of("file"), "inactive_file", &value));
	CHECK_EQUAL(value, 12345678901234);
	CHECK(af_room_number(path_of("file"), "MemAvail", &value));
	CHECK_EQUAL(value, 9); /* a key whole, not what begins with it */
	CHECK(!af_room_number(path_of("file"), "active_file", &value));
	CHECK(!af_room_number(path_of("none"), NULL, &value));
	put("file", "");
	CHECK(!af_room_number(path_of("file"), NULL, &value));
	put("file", "max\n");
	CHECK(!af_room_number(path_of("file"), NULL, &value));
	put("file", "4096");
	CHECK(af_room_number(path_of("file"), NULL, &value));
	CHECK_EQUAL(value, 4096);
	end();
}

static void
a_group_leaves_its_limit_without_what_it_uses(void)
{
	begin();
	CHECK_EQUAL(af_room_of_group(directory, true), UINT64_MAX); /* no such files: the root, or no limit */
	put("memory.max", "max\n");
	put("memory.current", "600\n");
	CHECK_EQUAL(af_room_of_group(directory, true), UINT64_MAX);
	put("memory.max", "1000\n");
	CHECK_EQUAL(af_room_of_group(directory, true), 400);
	put("memory.stat", "anon 350\nfile 250\ninactive_file 200\nactive_file 50\n");
	CHECK_EQUAL(af_room_of_group(directory, true), 600); /* the kernel drops files that nothing uses */
	put("memory.stat", "inactive_file 5000\n"); /* more than is used: the files are of different moments */
	CHECK_EQUAL(af_room_of_group(directory, true), 1000);
	put("memory.stat", "inactive_file 0\n");
	put("memory.max", "599\n"); /* lowered below what is used */
	CHECK_EQUAL(af_room_of_group(directory, true), 0);
	CHECK_EQUAL(af_room_of_group(directory, false), UINT64_MAX); /* the first version's files have other names */
	end();
}

static void
the_first_version_of_groups_is_read_too(void)
{
	begin();
	put("memory.limit_in_bytes", "9223372036854771712\n"); /* its word for no limit */
	put("memory.usage_in_bytes", "600\n");
	CHECK_EQUAL(af_room_of_group(directory, false), UINT64_MAX);
	put("memory.limit_in_bytes", "1000\n");
	put("memory.stat", "inactive_file 1\ntotal_inactive_file 100\n");
	CHECK_EQUAL(af_room_of_group(directory, false), 500); /* with those of the groups below */
	end();
}

static void
this_process_has_room_and_no_more_than_the_system(void)
{
	struct af_memory_groups groups = {0};
	uint64_t total, room = af_memory_room(&groups);

	CHECK(af_room_number("/proc/meminfo", "MemTotal", &total));
	CHECK(room > 0 && room <= total * 1024);
	begin();
	put("memory.max", "1000\n");
	put("memory.current", "600\n");
	groups.nb = 2; /* the first one is nowhere */
	snprintf(groups.paths[0], AF_ROOM_PATH, "%s/none", directory);
	snprintf(groups.paths[1], AF_ROOM_PATH, "%s", directory);
	CHECK_EQUAL(af_memory_room(&groups), 400);
	end();
}

CASES(CASE(a_number_is_found_by_its_key), CASE(a_group_leaves_its_limit_without_what_it_uses),
      CASE(the_first_version_of_groups_is_read_too), CASE(this_process_has_room_and_no_more_than_the_system))
