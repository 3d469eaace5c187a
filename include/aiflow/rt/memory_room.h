/* How much memory this process may still take: by the limits of its control group and of those above, and by what the
 * system has. Beyond a limit the kernel does not refuse a page: it ends a process.
 *
 * It reads files of the kernel: per megabyte of fresh memory at most, never for memory that is used again. */
#ifndef AIFLOW_MEMORY_ROOM_H
#define AIFLOW_MEMORY_ROOM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AF_ROOM_PATH 512
#define AF_ROOM_GROUPS 8u
#define AF_ROOM_UNLIMITED (1ull << 60) /* cgroup v1 writes a number like this for "no limit" */

/* The number after `key` in a file; the first number for a NULL key. False if there is none ("max"). */
static inline bool
af_room_number(const char *path, const char *key, uint64_t *value)
{
	FILE *file = fopen(path, "re");
	char line[256];
	bool found = false;

	while (file && !found && fgets(line, sizeof line, file)) {
		const char *at = line;
		char *end;

		if (key) {
			size_t n = strlen(key);

			if (strncmp(line, key, n) || (line[n] != ' ' && line[n] != ':'))
				continue;
			at = line + n + 1;
		}
		*value = strtoull(at, &end, 10);
		found = end != at;
	}
	if (file)
		fclose(file);
	return found;
}

/* What one control group leaves. Pages of files that nothing uses count as room: the kernel drops them first. */
static inline uint64_t
af_room_of_group(const char *group, bool v2)
{
	char path[AF_ROOM_PATH + 64];
	uint64_t limit, used, files = 0;

	snprintf(path, sizeof path, "%s/%s", group, v2 ? "memory.max" : "memory.limit_in_bytes");
	if (!af_room_number(path, NULL, &limit) || limit >= AF_ROOM_UNLIMITED)
		return UINT64_MAX;
	snprintf(path, sizeof path, "%s/%s", group, v2 ? "memory.current" : "memory.usage_in_bytes");
	if (!af_room_number(path, NULL, &used))
		return UINT64_MAX;
	snprintf(path, sizeof path, "%s/memory.stat", group);
	af_room_number(path, v2 ? "inactive_file" : "total_inactive_file", &files);
	used -= files < used ? files : used;
	return limit > used ? limit - used : 0;
}

/* The memory groups that limit this process. control: w before the first look */
struct af_memory_groups {
	uint32_t nb;
	char paths[AF_ROOM_GROUPS][AF_ROOM_PATH];
};

/* Bytes that this process may still take. */
static inline uint64_t
af_memory_room(const struct af_memory_groups *groups)
{
	char limit[AF_ROOM_PATH + 64];
	uint64_t room = UINT64_MAX, available;

	if (af_room_number("/proc/meminfo", "MemAvailable", &available))
		room = available * 1024;
	for (uint32_t i = 0; i < groups->nb; i++) {
		uint64_t left;

		snprintf(limit, sizeof limit, "%s/memory.max", groups->paths[i]);
		left = af_room_of_group(groups->paths[i], access(limit, F_OK) == 0);
		room = left < room ? left : room;
	}
	return room;
}

#endif
