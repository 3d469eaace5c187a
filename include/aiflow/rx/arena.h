/* The element memory of a receiver: one reservation of address space, from which each slice takes a block.
 *
 * A block is placed at the lowest address where it fits. So the same pages serve slice after slice, and a page is fresh
 * once, not once per slice: copies into fresh pages are ten times slower. The loop takes blocks. The thread that drops
 * the last view of a slice gives its block back.
 */
#ifndef AIFLOW_ARENA_H
#define AIFLOW_ARENA_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define AF_ARENA_SMALL 65536u /* bytes: smaller blocks are charged with their padding */
#define AF_ARENA_STEP (64u << 20) /* bytes by which the writable part grows */

struct af_block {
	struct af_block *next, *previous; /* by address */
	uint64_t offset, size;            /* in the arena; rounded up */
	uint64_t charged;                 /* what counts towards the limit */
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
	struct af_block first; /* sentinel */
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

/* limit: bytes that may be charged at a time. with_memory: false when the elements stay in mbufs. */
static inline int
af_arena_init(struct af_arena *arena, uint64_t limit, bool with_memory)
{
	memset(arena, 0, sizeof *arena);
	pthread_mutex_init(&arena->lock, NULL);
	arena->limit = limit;
	arena->first.next = arena->first.previous = &arena->first;
	if (with_memory) {
		arena->warm = limit + limit / 4 + (4u << 20);
		arena->address_space = (af_arena_addresses(limit, arena->warm) + 4095) & ~(uint64_t)4095;
		arena->base =
			mmap(NULL, arena->address_space, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (arena->base == MAP_FAILED)
			return -1;
		madvise(arena->base, arena->address_space, MADV_HUGEPAGE);
	}
	return 0;
}

static inline void
af_arena_free(struct af_arena *arena)
{
	if (arena->base && arena->base != MAP_FAILED)
		munmap(arena->base, arena->address_space);
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
			madvise(arena->base + offset, at->offset - offset, MADV_DONTNEED);
		offset = at->offset + at->size;
	}
	if (arena->writable > offset)
		madvise(arena->base + offset, arena->writable - offset, MADV_DONTNEED);
	pthread_mutex_unlock(&arena->lock);
}

static inline void
af_arena_give(struct af_arena *arena, struct af_block *block)
{
	pthread_mutex_lock(&arena->lock);
	if (block->offset + block->size > arena->warm)
		madvise(arena->base + block->offset, block->size, MADV_DONTNEED);
	block->previous->next = block->next;
	block->next->previous = block->previous;
	arena->used -= block->charged;
	pthread_mutex_unlock(&arena->lock);
	free(block);
	atomic_fetch_add_explicit(&arena->releases, 1, memory_order_release);
}

#endif
