/*
 * What the private DPDK of a wheel has of its own; tools/private_dpdk.py links it in.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

size_t strlcpy(char *to, const char *from, size_t room);
size_t strlcat(char *to, const char *from, size_t room);
void *__real_dlopen(const char *file, int mode);
void *__wrap_dlopen(const char *file, int mode);

/* Debian's DPDK takes these two from libbsd. libbsd and libmd need not travel for them. */
size_t
strlcpy(char *to, const char *from, size_t room)
{
	size_t length = strlen(from);

	if (room != 0) {
		size_t copied = length < room ? length : room - 1;

		memcpy(to, from, copied);
		to[copied] = '\0';
	}
	return length;
}

size_t
strlcat(char *to, const char *from, size_t room)
{
	size_t before = strnlen(to, room);

	return before + strlcpy(to + before, from, room - before);
}

/*
 * The EAL asks whether librte_eal is loaded as a shared library, and if so loads all plug-ins of the system. In a
 * process that also has the system's DPDK the answer would be about that one.
 */
void *
__wrap_dlopen(const char *file, int mode)
{
	if (file != NULL && (mode & RTLD_NOLOAD) != 0 && strncmp(file, "librte_eal.so", strlen("librte_eal.so")) == 0)
		return NULL;
	return __real_dlopen(file, mode);
}
