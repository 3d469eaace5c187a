/* What happens in a run: options by name, or, with draw=1, everything drawn from the seed. */
#ifndef TESTS_SCENARIO_H
#define TESTS_SCENARIO_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aiflow/rt/agent.h"
#include "aiflow/rt/fault_line.h"

#define MAX_SENDERS 4
#define MAX_SLICES 256
#define MS 1000000ull
#define ALL_KINDS 0xffffu

enum way { FORTH, BACK }; /* towards the receiver, from it */

struct scenario {
	int seed, seeds, draw, trace;
	int capture; /* write what each end hears to receiver-SEED and sender-SEED: inputs of tests/fuzz */
	int log;     /* write every frame that is sent to standard output, and the outcome to standard error */
	int slices, senders, ports, window, ring, frame;
	int frames_wanted, queue; /* drawn: slices are posted until this number of frames was sent; slices at a time */
	int loss, dup, corrupt, truncate, stall; /* per 10 000 frames, each direction */
	int burst; /* mean length of bursts of losses */
	int jitter_us, reorder; /* frames are late by up to this; frames of 10 000 that are */
	int delay_us, stall_ms;
	int small, zero; /* many small elements; one of this number of elements is empty */
	int bytes; /* largest element */
	int memory_kb, hold_ms; /* what the receiver may hold; how long its user keeps a slice */
	int die_ms, die_way; /* from then on path 0 is dead: 1 towards the receiver, 2 back, 3 both ways */
	int back_ms; /* and after so long it is back; 0: never */
	int outage_ms, outage_for_ms; /* the same for all paths */
	int mute_ms; /* all that the receiver says is lost for so long */
	int cancel; /* one of this number of slices is cancelled while it flows */
	int rx_restart_ms, tx_restart_ms;
	int pause_ms, pause_for_ms, pause_way; /* a process is not scheduled: 1 the receiver, 2 sender 0 */
	int unplug_ms, unplug_for_ms; /* the last port of sender 0 goes, and comes back */
	int first_lost, last_lost; /* the first DATA frame is lost; CLOSE frames are lost once each */
	int keep; /* the receiver keeps frames in place (assemble=False) */
	int confirm; /* slices are delivered when the user says so, after up to 2 ms more; n > 1: every n-th fails; 5: 8
			of 12, up to 30 ms */
	int apart, silent_ms; /* fan.c: each receiver has ports of its own; the last one says nothing from then on */
	int timeout_ms; /* peer_timeout of both ends */
	int limit_ms;
};

static const struct scenario DEFAULTS = {
	.seed = 1,
	.seeds = 1,
	.slices = 12,
	.senders = 1,
	.ports = 4,
	.window = 90,
	.ring = 256,
	.frame = 1514,
	.bytes = 60000,
	.memory_kb = 65536,
	.reorder = 10000,
	.die_way = 3,
	.pause_way = 1,
	.timeout_ms = 10000,
	.limit_ms = 60000,
};
static struct scenario o;
static struct af_fault_rule rules[2][AF_MAX_PORTS];

#define OPTION(name) {#name, offsetof(struct scenario, name)}
static const struct {
	const char *name;
	size_t at;
} options[] = {
	OPTION(seed),          OPTION(seeds),         OPTION(draw),          OPTION(trace),        OPTION(capture),
	OPTION(log),           OPTION(slices),        OPTION(senders),       OPTION(ports),        OPTION(window),
	OPTION(ring),          OPTION(frame),         OPTION(loss),          OPTION(dup),          OPTION(corrupt),
	OPTION(truncate),      OPTION(stall),         OPTION(burst),         OPTION(jitter_us),    OPTION(reorder),
	OPTION(delay_us),      OPTION(stall_ms),      OPTION(small),         OPTION(zero),         OPTION(bytes),
	OPTION(memory_kb),     OPTION(hold_ms),       OPTION(confirm),       OPTION(die_ms),       OPTION(die_way),
	OPTION(back_ms),       OPTION(outage_ms),     OPTION(outage_for_ms), OPTION(mute_ms),      OPTION(cancel),
	OPTION(rx_restart_ms), OPTION(tx_restart_ms), OPTION(pause_ms),      OPTION(pause_for_ms), OPTION(pause_way),
	OPTION(unplug_ms),     OPTION(unplug_for_ms), OPTION(first_lost),    OPTION(last_lost),    OPTION(keep),
	OPTION(apart),         OPTION(silent_ms),     OPTION(timeout_ms),    OPTION(limit_ms),
};

static void
read_options(int argc, char **argv)
{
	o = DEFAULTS;
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		bool known = false;

		for (size_t k = 0; value && k < sizeof options / sizeof *options; k++)
			if (strlen(options[k].name) == (size_t)(value - argv[i]) &&
			    !strncmp(options[k].name, argv[i], (size_t)(value - argv[i]))) {
				int number = atoi(value + 1);

				memcpy((char *)&o + options[k].at, &number, sizeof number);
				known = true;
			}
		if (!known) {
			fprintf(stderr, "simulate: unknown option %s\n", argv[i]);
			exit(2);
		}
	}
}

static uint64_t random_state;

static void
seed_random(uint64_t seed)
{
	random_state = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
	for (int i = 0; i < 10; i++)
		random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
	random_state |= 1;
}

static uint64_t
draw64(void)
{
	random_state ^= random_state >> 12; /* xorshift64* (Vigna) */
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 0x2545f4914f6cdd1dull;
}

static uint32_t
draw(uint32_t below)
{
	return below ? (uint32_t)(draw64() >> 33) % below : 0;
}

static int
between(int least, int most)
{
	return least + (int)draw((uint32_t)(most - least + 1));
}

/* ---- the faults of each line ---- */

/* As the options say: every line alike, but for path 0 that dies and for the receiver's silence. */
static void
rules_of_options(void)
{
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++) {
			struct af_fault_rule *r = &rules[way][p];

			*r = (struct af_fault_rule){
				.kinds = ALL_KINDS,
				.repeat_ppm = (uint32_t)o.dup * 100,
				.copies = 2,
				.corrupt_ppm = (uint32_t)o.corrupt * 100,
				.truncate_ppm = (uint32_t)o.truncate * 100,
				.stall_ppm = (uint32_t)o.stall * 100,
				.stall_ns = (uint64_t)o.stall_ms * MS,
				.delay_ns = (uint64_t)o.delay_us * 1000,
				.reorder_ppm = o.jitter_us ? (uint32_t)o.reorder * 100 : 0,
				.reorder_ns = (uint64_t)o.jitter_us * 1000,
			};
			if (o.burst) {
				r->burst_ppm = (uint32_t)(o.loss * 100 / o.burst);
				r->burst_frames = (uint32_t)o.burst;
			} else {
				r->drop_ppm = (uint32_t)o.loss * 100;
			}
		}
}

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
		r->down_every_ns = r->down_for_ns * (uint64_t)between(2, 10);
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
		if (draw(4) == 0) { /* path 0, for good */
			o.die_ms = between(1, 3);
			o.die_way = between(1, 3);
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

/* A world out of a seed: two paths at least, three kinds of fault at least. */
static void
draw_scenario(void)
{
	uint32_t chosen = 0;
	int nb_kinds = between(3, 6);

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
