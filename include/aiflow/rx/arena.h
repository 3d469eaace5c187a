/* Element memory of a receiver: one reservation of address space, dealt out slice by slice and used again.
 *
 * Blocks are placed as low as they fit, so that the same pages serve slice after slice: a page is touched for the first
 * time once, not once a slice (copies into fresh pages run ten times slower). The loop takes blocks; any thread that
 * drops the last view of a slice gives one back.
 */
#ifndef AIFLOW_STORE_H
#define AIFLOW_STORE_H

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

#define AF_STORE_SMALL 65536u
#define AF_STORE_STEP (64u << 20) /* what may be written grows by so many bytes */

struct af_block {
	struct af_block *next, *previous; /* by address */
	uint64_t offset, size;            /* of the block, rounded up */
	uint64_t charged;                 /* what counts towards the limit */
};

struct af_store {
	pthread_mutex_t lock; /* per slice, never per frame */
	uint8_t *base;
	uint64_t address_space, limit, used;
	uint64_t writable; /* the rest is reserved only, so that it counts nowhere (vm.overcommit_memory=2) */
	uint64_t warm; /* pages below are kept, pages above go back to the kernel with their block: under the lock */
	struct af_block first; /* sentinel */
	_Atomic uint32_t releases;
};

/* Addresses are free, and gaps between blocks must never be what refuses a slice; unless addresses are counted, too. */
static inline uint64_t
af_store_addresses(uint64_t limit, uint64_t warm)
{
	struct rlimit most;

	if (getrlimit(RLIMIT_AS, &most) == 0 && most.rlim_cur != RLIM_INFINITY)
		return warm;
	return 2 * warm + limit;
}

/* limit: bytes that may be out at once. with_memory: false when the elements stay in mbufs and only the count matters.
 */
static inline int
af_store_init(struct af_store *store, uint64_t limit, bool with_memory)
{
	memset(store, 0, sizeof *store);
	pthread_mutex_init(&store->lock, NULL);
	store->limit = limit;
	store->first.next = store->first.previous = &store->first;
	if (with_memory) {
		store->warm = limit + limit / 4 + (4u << 20);
		store->address_space = (af_store_addresses(limit, store->warm) + 4095) & ~(uint64_t)4095;
		store->base =
			mmap(NULL, store->address_space, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (store->base == MAP_FAILED)
			return -1;
		madvise(store->base, store->address_space, MADV_HUGEPAGE);
	}
	return 0;
}

static inline void
af_store_free(struct af_store *store)
{
	if (store->base && store->base != MAP_FAILED)
		munmap(store->base, store->address_space);
	pthread_mutex_destroy(&store->lock);
}

/* Slices of about one size share one rounded size, so that each fits where its forerunner lay. */
static inline uint64_t
af_store_round(uint64_t nbytes)
{
	uint64_t step = 4096;

	while (step * 8 < nbytes)
		step *= 2;
	return nbytes ? (nbytes + step - 1) / step * step : step;
}

/* Let bytes be written up to `end`; false when the system grants no more. With the lock. */
static inline bool
af_store_grow(struct af_store *store, uint64_t end)
{
	uint64_t ample = (end + AF_STORE_STEP - 1) / AF_STORE_STEP * AF_STORE_STEP;

	if (ample > store->address_space)
		ample = store->address_space;
	if (mprotect(store->base, ample, PROT_READ | PROT_WRITE)) {
		ample = end;
		if (mprotect(store->base, ample, PROT_READ | PROT_WRITE))
			return false;
	}
	store->writable = ample;
	return true;
}

/* Take `nbytes` of memory and charge `charged` bytes. NULL when that does not fit now. */
static inline struct af_block *
af_store_take(struct af_store *store, uint64_t nbytes, uint64_t charged)
{
	struct af_block *block = malloc(sizeof *block), *at;
	uint64_t size = store->base ? af_store_round(nbytes) : 0, offset = 0;

	if (!block)
		return NULL;
	if (size <= AF_STORE_SMALL && charged < size)
		charged = size < store->limit ? size : store->limit; /* a page is a page */
	pthread_mutex_lock(&store->lock);
	if (store->used + charged > store->limit)
		goto full;
	for (at = store->first.next; at != &store->first && size; at = at->next) {
		if (at->offset - offset >= size)
			break;
		offset = at->offset + at->size;
	}
	if (size && at == &store->first && store->address_space - offset < size)
		goto full;
	if (offset + size > store->writable && !af_store_grow(store, offset + size))
		goto full;
	*block = (struct af_block){
		.next = at, .previous = at->previous, .offset = offset, .size = size, .charged = charged};
	at->previous->next = block;
	at->previous = block;
	store->used += charged;
	pthread_mutex_unlock(&store->lock);
	return block;
full:
	pthread_mutex_unlock(&store->lock);
	free(block);
	return NULL;
}

/* No slice is taken any more: pages that no block uses go back to the kernel, those of blocks that come back later,
 * too. */
static inline void
af_store_trim(struct af_store *store)
{
	struct af_block *at;
	uint64_t offset = 0;

	if (!store->base || store->base == MAP_FAILED)
		return;
	pthread_mutex_lock(&store->lock);
	store->warm = 0;
	for (at = store->first.next; at != &store->first; at = at->next) {
		if (at->offset > offset)
			madvise(store->base + offset, at->offset - offset, MADV_DONTNEED);
		offset = at->offset + at->size;
	}
	if (store->writable > offset)
		madvise(store->base + offset, store->writable - offset, MADV_DONTNEED);
	pthread_mutex_unlock(&store->lock);
}

static inline void
af_store_give(struct af_store *store, struct af_block *block)
{
	pthread_mutex_lock(&store->lock);
	if (block->offset + block->size > store->warm)
		madvise(store->base + block->offset, block->size, MADV_DONTNEED);
	block->previous->next = block->next;
	block->next->previous = block->previous;
	store->used -= block->charged;
	pthread_mutex_unlock(&store->lock);
	free(block);
	atomic_fetch_add_explicit(&store->releases, 1, memory_order_release);
}

#endif
