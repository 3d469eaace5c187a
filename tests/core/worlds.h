/* Worlds out of a seed: what is in them, and which faults take place. */
#ifndef TESTS_WORLDS_H
#define TESTS_WORLDS_H

#include "scenario.h"

enum kind {
	DROP,
	BURST,
	DOWN,
	CORRUPT,
	TRUNCATE,
	REPEAT,
	REORDER,
	DELAY,
	STALL, /* of lines, in the order of enum af_fault_kind */
	OUTAGE,
	PAUSE,
	UNPLUG,
	RX_RESTART,
	TX_RESTART,
	CANCEL,
	STARVE,
	NB_FAULTS /* of the world */
};

_Static_assert((int)OUTAGE == AF_FAULT_OVERFLOW, "the kinds of lines come first, in the order of AF_FAULT_LIST");

static void
draw_rule(struct af_fault_rule *r, enum kind kind)
{
	bool harsh = draw(8) == 0;

	switch (kind) {
	case DROP:
		r->drop_ppm = (uint32_t)between(3000, harsh ? 300000 : 60000);
		break;
	case BURST:
		r->burst_ppm = (uint32_t)between(3000, 10000);
		r->burst_frames = (uint32_t)between(2, 40);
		break;
	case DOWN:
		r->down_after_ns = (uint64_t)between(0, 3000) * 1000;
		r->down_for_ns = (uint64_t)between(100, harsh ? 400000 : 20000) * 1000;
		/* Where segment 0 is dead for good, no other is down half of the time both ways. */
		r->down_every_ns = r->down_for_ns * (uint64_t)between(o.draw >= 2 && o.die_ms ? 4 : 2, 10);
		break;
	case CORRUPT:
		r->corrupt_ppm = (uint32_t)between(3000, harsh ? 100000 : 20000);
		break;
	case TRUNCATE:
		r->truncate_ppm = (uint32_t)between(3000, harsh ? 100000 : 20000);
		break;
	case REPEAT:
		r->repeat_ppm = (uint32_t)between(5000, harsh ? 1000000 : 100000);
		r->copies = (uint32_t)between(2, harsh ? 10 : 3);
		break;
	case REORDER:
		r->reorder_ppm = (uint32_t)between(5000, harsh ? 1000000 : 100000);
		r->reorder_ns = (uint64_t)between(20, harsh ? 20000 : 500) * 1000;
		break;
	case DELAY:
		r->delay_ns = (uint64_t)between(10, harsh ? 20000 : 1000) * 1000;
		break;
	case STALL:
		r->stall_ppm = (uint32_t)between(3000, 6000);
		r->stall_ns = (uint64_t)between(100, harsh ? 150000 : 5000) * 1000;
		break;
	default:
		break;
	}
}

static void
draw_world(enum kind kind)
{
	switch (kind) {
	case DOWN:
		if (draw(4) == 0) { /* segment 0, for good */
			o.die_ms = between(1, 3);
			o.die_way = between(1, 3);
			o.back_ms = o.joined ? between(1, 500) : 0; /* there all paths may end at one port */
		}
		break;
	case OUTAGE:
		o.outage_ms = between(1, 3);
		o.outage_for_ms = between(1, draw(4) ? 50 : 1500);
		break;
	case PAUSE:
		o.pause_ms = between(1, 3);
		o.pause_for_ms = between(1, draw(4) ? 150 : draw(4) ? 2000 : 6000);
		o.pause_way = between(1, 2);
		break;
	case UNPLUG:
		o.unplug_ms = between(1, 3);
		o.unplug_for_ms = between(1, 50);
		break;
	case RX_RESTART:
		o.rx_restart_ms = between(1, 4);
		break;
	case TX_RESTART:
		o.tx_restart_ms = between(1, 4);
		break;
	case CANCEL:
		o.cancel = between(2, 4);
		break;
	case STARVE:
		o.confirm = 0; /* two large slices that wait for a word keep others from asking */
		o.bytes = 1500;
		o.small = 0;
		o.queue = between(3, 9);
		o.memory_kb = o.keep ? between(300, 500) : between(60, 120);
		o.hold_ms = between(2, 8);
		break;
	default:
		break;
	}
}

/* draw=2: who is in the world. */
static void
draw_nodes(void)
{
	o.nodes = draw(3) ? 2 : 3;
	o.senders = draw(3) ? 1 : 2; /* of each node */
	o.receivers = draw(3) ? 1 : 2;
	o.unlike = draw(3) == 0;
	o.joined = draw(3) == 0;
	o.inward = o.joined && draw(2);
	o.unlike &= !o.inward; /* a port does not hear itself */
	o.direct = !o.joined && o.nodes == 2 && draw(2);
	o.named = draw(2);
	o.twins = draw(2);
	o.lives = draw(2) ? between(1, 12) : 0;
	o.whole = draw(2);
	o.keep = draw(4) ? 0 : between(1, 2);
	o.frames_wanted = between(500, 700); /* much of it is discovery */
}

/* draw=3: the same of nodes that share memory over some of their segments. A process dies whole. */
static void
draw_sharing(void)
{
	o.nodes = 3;
	o.ports = 4;
	o.hub = o.named = o.whole = 1;
	o.unlike = o.joined = o.inward = 0;
	o.direct = draw(2);
	o.share = draw(8) ? draw(2) ? 15 : 1 + (int)draw(15) : 0;
	o.stuck = draw(3) ? between(1, 20) : 0;
	o.stuck_ms = draw(3) ? between(1, 50) : draw(4) ? between(2000, 6000) : 5 * o.timeout_ms;
	o.hang = draw(2) ? between(1, 4) : 0;
	o.gone_ms = draw(2) ? between(1, 400) : 0;
	if (draw(2))
		o.memory_kb = o.bytes > 1500 || o.keep ? between(1200, 2000) : between(100, 400);
}

/* A world out of a seed: two paths at least, three kinds of fault at least. */
static void
draw_scenario(void)
{
	uint32_t chosen = 0;
	int nb_kinds = between(o.draw >= 2 ? 4 : 3, 6);

	o.ports = between(2, 4);
	o.senders = draw(5) ? 1 : 2;
	o.window = draw(3) ? between(8, 90) : between(2, 500);
	o.ring = draw(3) ? 256 : between(16, 600);
	o.frame = draw(2) ? 512 : between(512, 1514);
	o.bytes = draw(4) ? 1500 : 9000;
	o.small = draw(4) == 0;
	o.zero = draw(4) == 0 ? 2 : 0;
	o.keep = draw(4) == 0;
	o.confirm = draw(3) ? 0 : between(1, 5);
	o.timeout_ms = draw(4) ? 10000 : 4000;
	o.slices = MAX_SLICES;
	o.limit_ms = 300000; /* a path up and down in step with the round trip may take a minute */
	o.queue = between(1, 9);
	o.frames_wanted = between(200, 250);
	if (o.draw >= 2)
		draw_nodes();
	if (o.draw == 3)
		draw_sharing();
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			rules[way][p] = (struct af_fault_rule){.kinds = ALL_KINDS};
	while (nb_kinds) {
		enum kind kind = (enum kind)draw(nb_kinds > 2 ? OUTAGE : NB_FAULTS);
		bool any = false;

		/* Restarts of both ends, and restarts with cancellations, would excuse too much. */
		if (chosen >> kind & 1 || (kind >= RX_RESTART && kind <= CANCEL && chosen >> RX_RESTART & 7))
			continue;
		chosen |= 1u << kind;
		nb_kinds--;
		draw_world(kind);
		for (int k = 0; kind < OUTAGE && (k < 2 * o.ports || !any); k++)
			if (draw(2)) {
				draw_rule(&rules[k & 1][k / 2 % o.ports], kind);
				any |= !(k & 1);
			}
	}
}

#endif
