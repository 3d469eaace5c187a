/* What is in a run, and what happens in it: options by name. worlds.h draws them from the seed. */
#ifndef TESTS_SCENARIO_H
#define TESTS_SCENARIO_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aiflow/rt/agent.h"
#include "aiflow/rt/fault_line.h"

#define MAX_NODES 5
#define MAX_SENDERS 8
#define MAX_RECEIVERS 8
#define MAX_SLICES 256
#define MS 1000000ull
#define ALL_KINDS 0xffffu

enum way { FORTH, BACK }; /* the directions of a segment. Each node sends one way: see layout_world() */

struct scenario {
	int seed, seeds, trace;
	int draw;    /* 1: worlds of one receiver; 2: of nodes that have senders and receivers; 3: of nodes that share
			memory */
	int capture; /* write what each end hears to receiver-SEED and sender-SEED: inputs of tests/fuzz */
	int log;     /* write every frame that is sent to standard output, and the outcome to standard error */
	int slices, senders, ports, window, ring, frame;
	int nodes;     /* n > 0: each has `senders` and `receivers`; 0: one receiver, and a node for each sender */
	int receivers; /* of each node; with fan=1 of the world */
	int fan;       /* one node with a sender for each receiver; receivers have nodes of their own */
	int joined;    /* all segments are one switch: a node's frames reach its other ports, too */
	int inward;    /* joined: every second sender is for a receiver of its own node */
	int direct;    /* ports are point-to-point */
	int named;     /* every sender names its receiver */
	int unlike;    /* agents use different ports of their node, in different orders */
	int twins;     /* the numbers of all nodes come from the same seed */
	int sleep;     /* nodes without work sleep until a frame arrives or an agent is due */
	int lives;     /* after this number of slices a sender says goodbye, and another takes its place; 0: never */
	int frames_wanted, queue; /* drawn: slices are posted until this number of frames was sent; slices at a time */
	int loss, dup, corrupt, truncate, stall; /* per 10 000 frames, each direction */
	int burst; /* mean length of bursts of losses */
	int jitter_us, reorder; /* frames are late by up to this; frames of 10 000 that are */
	int delay_us, stall_ms;
	int small, zero; /* many small elements; one of this number of elements is empty */
	int bytes; /* largest element */
	int memory_kb, hold_ms; /* what the receiver may hold; how long its user keeps a slice */
	int die_ms, die_way; /* from then on segment 0 is dead: 1 forth, 2 back, 3 both ways */
	int back_ms; /* and after so long it is back; 0: never */
	int outage_ms, outage_for_ms; /* the same for all segments */
	int mute_ms; /* all that goes back is lost for so long */
	int cancel; /* one of this number of slices is cancelled while it flows */
	int rx_restart_ms, tx_restart_ms; /* of receiver 0, of sender 0 */
	int whole; /* restarts are of the node and all its agents, and an unplugged port is lost to all of them */
	int pause_ms, pause_for_ms, pause_way; /* a node is not scheduled: 1 receiver 0's, 2 sender 0's */
	int unplug_ms, unplug_for_ms; /* the last port of sender 0 goes, and comes back */
	int first_lost, last_lost; /* the first DATA frame is lost; CLOSE frames are lost once each */
	int keep; /* receivers keep frames in place (assemble=False): 1 all, 2 every second one */
	int confirm; /* slices are delivered when the user says so, after up to 2 ms more; n > 1: every n-th fails; 5: 8
			of 12, up to 30 ms */
	int apart; /* fan: each receiver has segments of its own */
	int silent_ms; /* fan: the last receiver does nothing from then on */
	int hub; /* nodes 1 and 2 have half of the segments each, and node 0 has all of them: see links.h */
	int share; /* hub: bit p: over segment p both ends have mapped each other's memory */
	int stuck, stuck_ms; /* a node sleeps before the frames of this number of 1000 written chunks; for up to this */
	int hang; /* one of this number of sleeps outlasts its connection: the other end hangs up */
	int gone_ms; /* that a process has died is known after up to this */
	int timeout_ms; /* peer_timeout of both ends */
	int limit_ms;
};

static const struct scenario DEFAULTS = {
	.seed = 1,
	.seeds = 1,
	.slices = 12,
	.senders = 1,
	.receivers = 1,
	.ports = 4,
	.window = 90,
	.ring = 256,
	.frame = 1514,
	.bytes = 60000,
	.memory_kb = 65536,
	.reorder = 10000,
	.die_way = 3,
	.pause_way = 1,
	.stuck_ms = 10,
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
	OPTION(seed),         OPTION(seeds),         OPTION(draw),          OPTION(trace),         OPTION(capture),
	OPTION(log),          OPTION(slices),        OPTION(senders),       OPTION(ports),         OPTION(window),
	OPTION(ring),         OPTION(frame),         OPTION(nodes),         OPTION(receivers),     OPTION(fan),
	OPTION(joined),       OPTION(inward),        OPTION(direct),        OPTION(named),         OPTION(unlike),
	OPTION(twins),        OPTION(sleep),         OPTION(lives),         OPTION(loss),          OPTION(dup),
	OPTION(corrupt),      OPTION(truncate),      OPTION(stall),         OPTION(burst),         OPTION(jitter_us),
	OPTION(reorder),      OPTION(delay_us),      OPTION(stall_ms),      OPTION(small),         OPTION(zero),
	OPTION(bytes),        OPTION(memory_kb),     OPTION(hold_ms),       OPTION(confirm),       OPTION(die_ms),
	OPTION(die_way),      OPTION(back_ms),       OPTION(outage_ms),     OPTION(outage_for_ms), OPTION(mute_ms),
	OPTION(cancel),       OPTION(rx_restart_ms), OPTION(tx_restart_ms), OPTION(whole),         OPTION(pause_ms),
	OPTION(pause_for_ms), OPTION(pause_way),     OPTION(unplug_ms),     OPTION(unplug_for_ms), OPTION(first_lost),
	OPTION(last_lost),    OPTION(keep),          OPTION(apart),         OPTION(silent_ms),     OPTION(timeout_ms),
	OPTION(limit_ms),     OPTION(hub),           OPTION(share),         OPTION(stuck),         OPTION(stuck_ms),
	OPTION(hang),         OPTION(gone_ms),
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

#endif
