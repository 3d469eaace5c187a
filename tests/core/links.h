/* Memory that receivers share with the senders of another node, as local peers do (hub=1, share=…).
 *
 * Node 0, the hub, has a connection with each other node: the segments that they have in common. Over those in `share`
 * both ends have mapped what the other's receivers share. A process that dies takes its connections with it; the one
 * that follows has new ones.
 */
#ifndef TESTS_LINKS_H
#define TESTS_LINKS_H

#include "aiflow/rx/arena.h"

#include "network.h"

#define MAX_LINKS 64 /* of all processes of a world, each end */
#define MAX_MEMORIES 64 /* of all receivers of a world */

/* One end of a connection. */
struct link {
	uint32_t writer; /* its number there */
	struct af_shared shared; /* what is mapped there of the other end's */
};

/* The memory of one receiver's life. */
struct memory {
	struct af_arena arena;
	bool gone; /* with its receiver: a sender may still write to its mapping, and no user reads it */
	int node;
	uint64_t epoch;
	uint8_t *mapped; /* as all senders have it */
	uint64_t nbytes;
};

static struct link all_links[MAX_LINKS];
static struct link *links[2][MAX_NODES]; /* by the other node: at the hub; at that node. NULL: there is none now */
static struct memory memories[MAX_MEMORIES];
static uint32_t nb_links, nb_memories;

/* The node that has a connection with the hub over this segment. */
static int
spoke_of(uint32_t segment)
{
	return segment < (uint32_t)o.ports / 2 ? 1 : 2;
}

static struct link *
link_of(int node, uint32_t segment)
{
	return o.hub && o.share >> segment & 1 ? links[node != 0][node ? node : spoke_of(segment)] : NULL;
}

static bool
may_share(void)
{
	return o.hub && o.share;
}

static void
map_at(struct link *link, const struct memory *memory)
{
	if (link && !memory->gone)
		af_shared_add(&link->shared, memory->mapped, memory->nbytes, memory->epoch, false);
}

/* Both processes are there: they connect, and tell each other of the memory that they share. */
static void
connect_nodes(int spoke)
{
	for (int side = 0; side < 2; side++) {
		struct link *link = links[side][spoke] = &all_links[nb_links++];

		if (nb_links > MAX_LINKS)
			exit(2);
		memset(link, 0, sizeof *link);
		link->writer = nb_links;
		for (uint32_t i = 0; i < nb_memories; i++)
			if (memories[i].node == (side ? 0 : spoke))
				map_at(link, &memories[i]);
	}
}

/* Memory for a new receiver of this node, which all its peers map. */
static struct af_arena *
share_memory(int node, uint64_t epoch)
{
	struct memory *memory = &memories[nb_memories++];

	if (nb_memories > MAX_MEMORIES || af_arena_init(&memory->arena, (uint64_t)o.memory_kb << 10, AF_ARENA_SHARED) ||
	    memory->arena.fd < 0)
		exit(2);
	memory->gone = false;
	memory->node = node;
	memory->epoch = epoch;
	memory->nbytes = memory->arena.address_space;
	memory->mapped =
		mmap(NULL, memory->nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory->arena.fd, 0);
	if (memory->mapped == MAP_FAILED)
		exit(2);
	for (int spoke = 1; spoke < nb_nodes; spoke++)
		if (node == 0 || node == spoke)
			map_at(links[node == 0][spoke], memory);
	return &memory->arena;
}

/* A receiver goes, and its memory with it. */
static void
end_memory(const struct af_arena *arena)
{
	for (uint32_t i = 0; i < nb_memories; i++)
		if (&memories[i].arena == arena) {
			memories[i].gone = true;
			af_arena_free(&memories[i].arena, true);
		}
}

static void
close_links(void)
{
	for (uint32_t i = 0; i < nb_memories; i++)
		munmap(memories[i].mapped, memories[i].nbytes);
	nb_links = nb_memories = 0;
	memset(links, 0, sizeof links);
}

/* The memory that an address of a sender's is in. */
static struct memory *
memory_at(const uint8_t *address)
{
	for (uint32_t i = 0; i < nb_memories; i++)
		if (address >= memories[i].mapped && address < memories[i].mapped + memories[i].nbytes)
			return &memories[i];
	return NULL;
}

static const struct af_block *
block_at(const struct memory *memory, uint64_t offset)
{
	const struct af_arena *arena = &memory->arena;

	for (const struct af_block *at = arena->first.next; at != &arena->first; at = at->next)
		if (offset >= at->offset && offset < at->offset + at->size)
			return at;
	return NULL;
}

#endif
