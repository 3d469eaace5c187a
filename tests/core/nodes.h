/* The nodes of a world: a process each, with a port on every segment, and agents that share these ports. */
#ifndef TESTS_NODES_H
#define TESTS_NODES_H

#include "aiflow/rt/demux.h"
#include "aiflow/rt/numbers.h"

#include "links.h"

struct node {
	struct af_demux demux;
	struct af_numbers numbers; /* of its process */
	uint64_t wake_ns; /* sleep=1: it sleeps until then, unless a frame arrives or its users want something */
	bool poked; /* they do */
};

/* Where an agent is. */
struct place {
	int node;
	uint32_t nb_ports;
	uint32_t segments[AF_MAX_PORTS]; /* of its port i */
	struct af_agent agent;
};

static struct node nodes[MAX_NODES];
static uint64_t now; /* the simulated clock */
static uint64_t processes_begun; /* in this world */

__attribute__((noreturn)) static void fail(const char *what, int sender, int slice);

static struct af_agent_port
port_of(const struct place *at, uint32_t port)
{
	uint32_t p = at->segments[port];
	const struct link *link = link_of(at->node, p);

	return (struct af_agent_port){.attached = true,
				      .frame_size = (uint16_t)o.frame,
				      .rx_ring = (uint32_t)o.ring,
				      .tx_window = (uint32_t)o.window,
				      .point_to_point = o.direct,
				      .writer = link ? link->writer : 0,
				      .shared = link ? &link->shared : NULL,
				      .mac = {2, 0, 0, 0, node_bytes[at->node], (uint8_t)p}};
}

/* A process begins: its numbers come from a seed of its own, or from the one that all first processes of the world
 * have. */
static void
begin_process(int node)
{
	uint64_t process = processes_begun++;
	uint64_t seed[2] = {(uint64_t)o.seed, o.twins && process < (uint64_t)nb_nodes ? 0 : 1 + process};

	memset(&nodes[node], 0, sizeof nodes[node]);
	af_numbers_init(&nodes[node].numbers, seed);
}

/* On which ports of its node an agent is: all that are on a segment of `mask`, in either order. */
static void
place_agent(struct place *at, int node, uint32_t mask, bool reversed)
{
	at->node = node;
	at->nb_ports = 0;
	for (uint32_t i = 0; i < (uint32_t)o.ports; i++) {
		uint32_t p = reversed ? (uint32_t)o.ports - 1 - i : i;

		if (mask >> p & 1)
			at->segments[at->nb_ports++] = p;
	}
}

static void
plug(struct place *at, uint32_t port)
{
	af_demux_plug(&nodes[at->node].demux, at->segments[port], &at->agent, port, NULL);
	nodes[at->node].poked = true;
}

static void
unplug(struct place *at, uint32_t port)
{
	af_demux_unplug(&nodes[at->node].demux, at->segments[port], &at->agent);
	nodes[at->node].poked = true;
}

static void
enter_node(struct place *at)
{
	if (!af_demux_add(&nodes[at->node].demux, &at->agent))
		exit(2);
	for (uint32_t i = 0; i < at->nb_ports; i++)
		plug(at, i);
}

static void
leave_node(struct place *at)
{
	af_demux_remove(&nodes[at->node].demux, &at->agent);
}

#endif
