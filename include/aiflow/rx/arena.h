/* The element memory of a receiver: one reservation of address space, from which each slice takes a block.
 *
 * A block is placed at the lowest address where it fits. So the same pages serve slice after slice, and a page is fresh
 * once, not once per slice: copies into fresh pages are ten times slower. The loop takes blocks. The thread that drops
 * the last view of a slice gives its block back.
 *
 * Memory is private, or shared with senders on this host, which write into the blocks that were granted to them
 * (placing.h). Pages of shared memory are allocated before a block is granted: later, a lack of them would be a SIGBUS.
 * A block that its sender may still write to is fenced: its pages return to the kernel, nothing is charged for it, and
 * its addresses are given to no other slice before the fence is lifted. A block that a user keeps as an array is fenced
 * with its pages: no slice may lie in it meanwhile.
 */
#ifndef AIFLOW_ARENA_H
#define AIFLOW_ARENA_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "aiflow/rt/memory_room.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define AF_ARENA_SMALL 65536u /* bytes: smaller blocks are charged with their padding */
#define AF_ARENA_STEP (64u << 20) /* bytes by which the writable part of private memory grows */
#define AF_ARENA_GRAIN (1u << 20) /* bytes of shared memory that are allocated at a time */
#define AF_ARENA_SPARE (16u << 20) /* bytes that are left to the rest of the process */

enum af_arena_kind {
	AF_ARENA_NONE,    /* the elements stay in mbufs */
	AF_ARENA_PRIVATE,
	AF_ARENA_SHARED
};

#define AF_WRITER_SEVERAL UINT32_MAX /* connections: the end of one says nothing of the others */
#define AF_NO_INSTANCE UINT64_MAX /* of no sender: an instance has 48 bits */

/* Who may write into a block. */
struct af_writer {
	uint32_t connection; /* over which its process has mapped the memory; 0: no process writes */
	uint16_t life;       /* the session of its sender, */
	uint64_t instance;   /* … which is this one */
};

struct af_block {
	struct af_block *next, *previous; /* by address */
	uint64_t offset, size;            /* in the arena; rounded up */
	uint64_t charged;                 /* what counts towards the limit */
	uint64_t filled;                  /* shared memory: bytes from `offset` on that have pages */
	struct af_writer writer;          /* of a fenced block: may still write to it */
	bool fenced;
	bool kept;                        /* it is fenced, and a user has it: its pages stay */
};

struct af_arena {
	pthread_mutex_t lock; /* per slice, never per frame */
	uint8_t *base;          /* NULL: the elements stay in mbufs */
	uint64_t address_space; /* bytes that are reserved */
	uint64_t limit;         /* bytes that may be charged, */
	uint64_t used;          /* … and those that are; under the lock */
	uint64_t writable; /* bytes; the rest is only reserved, and the kernel does not count it
			      (vm.overcommit_memory=2) */
	uint64_t warm; /* pages below are kept, pages above return to the kernel with their block; under the lock */
	int fd;        /* of shared memory; -1: it is private */
	uint8_t *grains; /* shared memory: which grains have all their pages; under the lock */
	uint64_t (*room)(const struct af_memory_groups *groups); /* af_memory_room; NULL: no limit is looked at */
	const struct af_memory_groups *groups;                   /* that limit this process */
	struct af_block first; /* sentinel */
	uint64_t fenced; /* blocks; under the lock */
	_Atomic uint32_t releases; /* blocks that were given back; any thread */
};

/* Reserve ample addresses, so that gaps between blocks never refuse a slice; fewer if a limit counts addresses. */
static inline uint64_t
af_arena_addresses(uint64_t limit, uint64_t warm)
{
	struct rlimit most;

	if (getrlimit(RLIMIT_AS, &most) == 0 && most.rlim_cur != RLIM_INFINITY)
		return warm;
	return 2 * warm + limit;
}

/* Memory for others to map. Its size is sealed: a mapping of a file that can shrink may end in SIGBUS. */
static inline int
af_arena_share(struct af_arena *arena)
{
	struct rlimit most;
	int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

	if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur < arena->address_space)
		return -1; /* to make the file would raise SIGXFSZ */
	arena->fd = memfd_create("aiflow", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (arena->fd < 0)
		return -1;
	arena->grains = calloc(arena->address_space / AF_ARENA_GRAIN + 1, 1);
	if (arena->grains && ftruncate(arena->fd, (off_t)arena->address_space) == 0 &&
	    fcntl(arena->fd, F_ADD_SEALS, seals) == 0) {
		arena->base = mmap(NULL, arena->address_space, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
				   arena->fd, 0);
		if (arena->base != MAP_FAILED)
			return 0;
	}
	arena->base = NULL;
	free(arena->grains);
	arena->grains = NULL;
	close(arena->fd);
	arena->fd = -1;
	return -1;
}

/* limit: bytes that may be charged at a time. Where no memory can be shared, it becomes private. */
static inline int
af_arena_init(struct af_arena *arena, uint64_t limit, enum af_arena_kind kind)
{
	memset(arena, 0, sizeof *arena);
	pthread_mutex_init(&arena->lock, NULL);
	arena->limit = limit;
	arena->fd = -1;
	arena->first.next = arena->first.previous = &arena->first;
	if (kind == AF_ARENA_NONE)
		return 0;
	arena->warm = limit + limit / 4 + (4u << 20);
	arena->address_space = (af_arena_addresses(limit, arena->warm) + 4095) & ~(uint64_t)4095;
	if (kind == AF_ARENA_SHARED && af_arena_share(arena) == 0) {
		arena->writable = arena->address_space;
	} else {
		arena->base =
			mmap(NULL, arena->address_space, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (arena->base == MAP_FAILED)
			return -1;
	}
	madvise(arena->base, arena->address_space, MADV_HUGEPAGE);
	return 0;
}

/* Return pages to the kernel; under the lock. Of shared memory for all that have mapped it. */
static inline void
af_arena_return(struct af_arena *arena, uint64_t offset, uint64_t size)
{
	if (arena->fd < 0) {
		madvise(arena->base + offset, size, MADV_DONTNEED);
		return;
	}
	fallocate(arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
	if (size)
		memset(arena->grains + offset / AF_ARENA_GRAIN, 0,
		       (offset + size - 1) / AF_ARENA_GRAIN - offset / AF_ARENA_GRAIN + 1);
}

/* ours: false in a forked child, where shared memory is the parent's. */
static inline void
af_arena_free(struct af_arena *arena, bool ours)
{
	if (arena->fd >= 0 && ours)
		af_arena_return(arena, 0, arena->address_space); /* a sender that is stopped may map it for long */
	if (arena->fd >= 0)
		close(arena->fd);
	if (arena->base && arena->base != MAP_FAILED)
		munmap(arena->base, arena->address_space);
	free(arena->grains);
	for (struct af_block *at = arena->first.next, *next; at != &arena->first; at = next) { /* fenced ones */
		next = at->next;
		free(at);
	}
	pthread_mutex_destroy(&arena->lock);
}

/* Slices of similar size have one rounded size, so that each fits where an earlier one was. */
static inline uint64_t
af_arena_round(uint64_t nbytes)
{
	uint64_t step = 4096;

	while (step * 8 < nbytes)
		step *= 2;
	return nbytes ? (nbytes + step - 1) / step * step : step;
}

/* Make bytes up to `end` writable. False when the system refuses. Under the lock. */
static inline bool
af_arena_grow(struct af_arena *arena, uint64_t end)
{
	uint64_t ample = (end + AF_ARENA_STEP - 1) / AF_ARENA_STEP * AF_ARENA_STEP;

	if (ample > arena->address_space)
		ample = arena->address_space;
	if (mprotect(arena->base, ample, PROT_READ | PROT_WRITE)) {
		ample = end;
		if (mprotect(arena->base, ample, PROT_READ | PROT_WRITE))
			return false;
	}
	arena->writable = ample;
	return true;
}

/* Take `nbytes` of memory and charge `charged` bytes. NULL when that does not fit now. */
static inline struct af_block *
af_arena_take(struct af_arena *arena, uint64_t nbytes, uint64_t charged)
{
	struct af_block *block = malloc(sizeof *block), *at;
	uint64_t size = arena->base ? af_arena_round(nbytes) : 0, offset = 0;

	if (!block)
		return NULL;
	if (size <= AF_ARENA_SMALL && charged < size)
		charged = size < arena->limit ? size : arena->limit; /* small blocks take whole pages */
	pthread_mutex_lock(&arena->lock);
	if (arena->used + charged > arena->limit)
		goto full;
	for (at = arena->first.next; at != &arena->first && size; at = at->next) {
		if (at->offset - offset >= size)
			break;
		offset = at->offset + at->size;
	}
	if (size && at == &arena->first && arena->address_space - offset < size)
		goto full;
	if (offset + size > arena->writable && !af_arena_grow(arena, offset + size))
		goto full;
	*block = (struct af_block){
		.next = at, .previous = at->previous, .offset = offset, .size = size, .charged = charged};
	at->previous->next = block;
	at->previous = block;
	arena->used += charged;
	pthread_mutex_unlock(&arena->lock);
	return block;
full:
	pthread_mutex_unlock(&arena->lock);
	free(block);
	return NULL;
}

/* Bytes of pages that a block lacks; under the lock. */
static inline uint64_t
af_arena_lacks(const struct af_arena *arena, const struct af_block *block)
{
	uint64_t end = block->offset + block->size, lacks = 0;

	for (uint64_t grain = (block->offset + block->filled) / AF_ARENA_GRAIN; grain * AF_ARENA_GRAIN < end; grain++)
		lacks += arena->grains[grain] ? 0 : AF_ARENA_GRAIN;
	return lacks;
}

enum af_fill { AF_FILL_DONE, AF_FILL_MORE, AF_FILL_FAILED };

/* Allocate the pages of a block, at most `most` bytes of fresh ones. AF_FILL_MORE: call it again. AF_FILL_FAILED: the
 * system has no memory for them, or a control group leaves less than all of them and AF_ARENA_SPARE. */
static inline enum af_fill
af_arena_fill(struct af_arena *arena, struct af_block *block, uint64_t most)
{
	enum af_fill result = AF_FILL_DONE;
	uint64_t end = block->offset + block->size, fresh = 0, lacks;

	if (arena->fd < 0)
		return AF_FILL_DONE;
	pthread_mutex_lock(&arena->lock);
	lacks = af_arena_lacks(arena, block);
	if (lacks && arena->room && arena->room(arena->groups) < lacks + AF_ARENA_SPARE)
		result = AF_FILL_FAILED;
	while (block->filled < block->size && result == AF_FILL_DONE) {
		uint64_t grain = (block->offset + block->filled) / AF_ARENA_GRAIN, from = grain * AF_ARENA_GRAIN,
			 until = from + AF_ARENA_GRAIN;

		if (until > arena->address_space)
			until = arena->address_space;
		if (!arena->grains[grain] && fresh >= most) {
			result = AF_FILL_MORE;
		} else if (!arena->grains[grain] && fallocate(arena->fd, 0, (off_t)from, (off_t)(until - from))) {
			result = errno == EINTR ? AF_FILL_MORE : AF_FILL_FAILED; /* older kernels stop for a signal */
		} else {
			fresh += arena->grains[grain] ? 0 : until - from;
			arena->grains[grain] = 1;
			block->filled = (until < end ? until : end) - block->offset;
		}
	}
	pthread_mutex_unlock(&arena->lock);
	return result;
}

/* Give all memory up to the limit its pages, now: the first slices need not wait for them. False when there are too
 * few, and for an arena without memory. */
static inline bool
af_arena_warm(struct af_arena *arena)
{
	struct af_block whole = {.size = arena->limit};
	enum af_fill fill = AF_FILL_FAILED;

	if (!arena->base || (arena->room && arena->room(arena->groups) < arena->limit + AF_ARENA_SPARE))
		return false;
	if (arena->fd < 0)
		return af_arena_grow(arena, arena->limit) &&
		       madvise(arena->base, arena->limit, MADV_POPULATE_WRITE) == 0;
	for (fill = AF_FILL_MORE; fill == AF_FILL_MORE;)
		fill = af_arena_fill(arena, &whole, AF_ARENA_STEP);
	return fill == AF_FILL_DONE && madvise(arena->base, arena->limit, MADV_POPULATE_WRITE) == 0;
}

/* Return unused pages to the kernel, now and with every block that comes back. For an arena that grants no more. */
static inline void
af_arena_trim(struct af_arena *arena)
{
	struct af_block *at;
	uint64_t offset = 0;

	if (!arena->base || arena->base == MAP_FAILED)
		return;
	pthread_mutex_lock(&arena->lock);
	arena->warm = 0;
	for (at = arena->first.next; at != &arena->first; at = at->next) {
		if (at->offset > offset)
			af_arena_return(arena, offset, at->offset - offset);
		offset = at->offset + at->size;
	}
	if (arena->writable > offset)
		af_arena_return(arena, offset, arena->writable - offset);
	pthread_mutex_unlock(&arena->lock);
}

/* Under the lock. */
static inline void
af_arena_unlink(struct af_block *block)
{
	block->previous->next = block->next;
	block->next->previous = block->previous;
	free(block);
}

static inline void
af_arena_give(struct af_arena *arena, struct af_block *block)
{
	pthread_mutex_lock(&arena->lock);
	if (block->kept || block->offset + block->size > arena->warm)
		af_arena_return(arena, block->offset, block->size);
	arena->used -= block->charged;
	if (block->kept) { /* from now on it is like any other that is fenced */
		block->charged = 0;
		block->kept = false;
	} else {
		af_arena_unlink(block);
	}
	pthread_mutex_unlock(&arena->lock);
	atomic_fetch_add_explicit(&arena->releases, 1, memory_order_release);
}

/* Give a block back that `writer` may still write to. */
static inline void
af_arena_fence(struct af_arena *arena, struct af_block *block, struct af_writer writer)
{
	pthread_mutex_lock(&arena->lock);
	af_arena_return(arena, block->offset, block->size);
	arena->used -= block->charged;
	block->charged = 0;
	block->writer = writer;
	block->fenced = true;
	arena->fenced++;
	pthread_mutex_unlock(&arena->lock);
	atomic_fetch_add_explicit(&arena->releases, 1, memory_order_release);
}

/* Writers have said that they are done, or are dead: lift their fences. Those of all senders of a connection, unless it
 * is 0, and of the earlier lives of an instance: a late HELLO of the life that writes lifts nothing. */
static inline void
af_arena_lift(struct af_arena *arena, struct af_writer done)
{
	pthread_mutex_lock(&arena->lock);
	for (struct af_block *at = arena->first.next, *next; at != &arena->first && arena->fenced; at = next) {
		bool gone = done.connection && at->writer.connection == done.connection;

		next = at->next;
		gone |= at->writer.instance == done.instance && (int16_t)(uint16_t)(done.life - at->writer.life) > 0;
		if (!at->fenced || !gone)
			continue;
		arena->fenced--;
		at->fenced = false;
		if (at->kept) {
			at->kept = false;
			continue;
		}
		af_arena_return(arena, at->offset, at->size); /* it may have filled the hole */
		af_arena_unlink(at);
	}
	pthread_mutex_unlock(&arena->lock);
	atomic_fetch_add_explicit(&arena->releases, 1, memory_order_release);
}

#endif
