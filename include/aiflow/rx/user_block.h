/* Blocks of element memory that a user has: as an array, or as a slice whose elements were moved elsewhere. */
#ifndef AIFLOW_USER_BLOCK_H
#define AIFLOW_USER_BLOCK_H

#include "aiflow/rx/arena.h"

/* The user keeps this block as an array. `writer` may still write to it, although its slice is freed. */
static inline void
af_arena_fence_kept(struct af_arena *arena, struct af_block *block, struct af_writer writer)
{
	pthread_mutex_lock(&arena->lock);
	if (block->fenced)
		writer = (struct af_writer){0}; /* two slices lay in it: until the arena's end, since one may be left */
	arena->fenced += !block->fenced;
	block->writer = writer;
	block->fenced = block->kept = true;
	pthread_mutex_unlock(&arena->lock);
}

/* The elements of a block lie elsewhere now: keep its first page, and charge only `charged` bytes. */
static inline void
af_arena_shrink(struct af_arena *arena, struct af_block *block, uint64_t charged)
{
	uint64_t end = block->offset + block->size;

	if (block->size <= AF_ARENA_SMALL || charged >= block->charged)
		return;
	pthread_mutex_lock(&arena->lock);
	arena->used -= block->charged - charged;
	block->charged = charged;
	block->size = 4096;
	block->filled = 0;
	if (end > arena->warm)
		af_arena_return(arena, block->offset + block->size, end - block->offset - block->size);
	pthread_mutex_unlock(&arena->lock);
	atomic_fetch_add_explicit(&arena->releases, 1, memory_order_release);
}

/* The block that has an address; NULL: none has it. */
static inline struct af_block *
af_arena_block_at(struct af_arena *arena, const void *address)
{
	uint64_t offset = (uintptr_t)address - (uintptr_t)arena->base;
	struct af_block *at;

	if (!arena->base || offset >= arena->address_space)
		return NULL;
	pthread_mutex_lock(&arena->lock);
	for (at = arena->first.next; at != &arena->first && at->offset + at->size <= offset; at = at->next)
		;
	pthread_mutex_unlock(&arena->lock);
	return at != &arena->first && at->offset <= offset ? at : NULL;
}

#endif
