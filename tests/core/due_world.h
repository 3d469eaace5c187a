/* Drawn worlds in which both ends sleep until they have something due, as their loops do.
 *
 * A sender and a receiver lose frames, stop and go. After each step in which neither had anything to do, the one under
 * test is asked at drawn times before its due time: it must do nothing, and change nothing but its clocks. */
#ifndef TESTS_DUE_WORLD_H
#define TESTS_DUE_WORLD_H

#include "aiflow/rt/idle.h"
#include "aiflow/rx/rx_due.h"
#include "aiflow/tx/tx_due.h"

#include "rig.h"

#ifndef WORLDS
#define WORLDS 100
#endif
#define WORLD_SLICES 12

struct world {
	struct rig rig;
	struct af_tx_slice *slices[WORLD_SLICES];
	struct af_rx_slice *held[WORLD_SLICES];
	uint32_t nb_posted, nb_held;
	uint32_t loss; /* of 1000 frames */
	uint64_t dead_until[AF_MAX_PORTS];
	uint64_t nb_looks, nb_sleeps, slept_ns;
};

static struct world world;

static inline bool
world_passes(enum rig_way way, uint32_t port, uint8_t *frame, uint32_t len)
{
	(void)way, (void)frame, (void)len;
	return world.rig.now >= world.dead_until[port] && check_random(1000) >= world.loss;
}

static inline void
world_begin(uint32_t seed)
{
	bool point_to_point, kick, paced;

	check_random_state = seed * 0x9e3779b97f4a7c15ull + 1;
	world = (struct world){0};
	rig_begin(&world.rig, 1 + check_random(3), check_random(2) ? 1 << 20 : 200000);
	world.rig.passes = world_passes;
	world.loss = check_random(3) * 30;
	point_to_point = check_random(2);
	kick = check_random(2);
	paced = !check_random(3);
	for (uint32_t p = 0; p < world.rig.nb_ports; p++) {
		struct af_tx_port *port = &world.rig.tx.ports[p];

		port->p.point_to_point = world.rig.rx.ports[p].p.point_to_point = point_to_point;
		port->p.kick = kick;
		if (paced) {
			port->pace.rate_based = true;
			port->pace.frame_ns = 100000 + check_random(900000);
			port->pace.gain = 10;
		}
	}
	world.rig.tx.peer_timeout_ns = world.rig.rx.peer_timeout_ns = (200 + check_random(2000)) * MS;
	world.rig.tx.sampler.interval_ns = world.rig.rx.sampler.interval_ns = check_random(2) * 100 * MS;
}

static inline void
world_end(void)
{
	af_tx_fail_all(&world.rig.tx, AF_TX_CANCELLED, world.rig.now);
	while (world.nb_held)
		af_rx_slice_free(world.held[--world.nb_held], rig_release);
	for (uint32_t i = 0; i < world.nb_posted; i++)
		rig_slice_free(world.slices[i]);
	rig_end(&world.rig);
}

/* One iteration of both loops. Did they do anything? */
static inline bool
world_iterate(void)
{
	struct rig *rig = &world.rig;
	uint8_t frame[RIG_FRAME + 100];
	uint32_t len;
	bool work = false;

	for (uint32_t p = 0; p < rig->nb_ports; p++) {
		for (int k = 0; k < 32 && (len = af_tx_next_frame(&rig->tx, p, rig->now, NULL, frame));
		     k++, work = true)
			rig_deliver(rig, TO_RECEIVER, p, frame, len);
		for (int k = 0; k < 32 && (len = af_rx_next_frame(&rig->rx, p, rig->now, NULL, frame));
		     k++, work = true)
			rig_deliver(rig, TO_SENDER, p, frame, len);
	}
	work |= af_tx_tick(&rig->tx, rig->now);
	work |= af_rx_tick(&rig->rx, rig->now);
	return work;
}

/* What users and the network do. */
static inline void
world_act(void)
{
	struct rig *rig = &world.rig;
	struct af_rx_slice *got = world.nb_held < WORLD_SLICES ? rig_take(rig) : NULL;

	if (got)
		world.held[world.nb_held++] = got;
	if (world.nb_held && !check_random(3))
		af_rx_slice_free(world.held[--world.nb_held], rig_release);
	if (world.nb_posted < WORLD_SLICES && !check_random(6)) {
		uint64_t sizes[2] = {check_random(4) ? check_random(60000) : check_random(300), check_random(2000)};

		world.slices[world.nb_posted++] = rig_post(rig, 2, sizes);
	}
	if (!check_random(60))
		world.dead_until[check_random(rig->nb_ports)] = rig->now + check_random(1500) * MS;
	if (world.nb_posted == WORLD_SLICES && !check_random(100))
		rig->tx.closing = true;
}

/* Run until all slices have ended; `look` examines the end under test, at a time before `due`. */
static inline void
world_run(uint64_t (*due_at)(struct rig *rig), void (*look)(struct rig *rig))
{
	struct rig *rig = &world.rig;

	for (int i = 0; i < 1000; i++) {
		uint64_t due, next, tx_due, rx_due;

		world_act();
		for (int k = 0; k < 1000 && world_iterate(); k++)
			;
		for (int k = 0; k < 2; k++)
			if (world_iterate())
				break;
		due = due_at(rig);
		tx_due = af_tx_due(&rig->tx, rig->now);
		rx_due = af_rx_due(&rig->rx, rig->now);
		next = af_earlier(af_earlier(tx_due, rx_due), rig->now + AF_SLEEP_QUIET_NS);
		for (int k = 0; k < 3 && due > rig->now + 1; k++) {
			uint64_t left = af_earlier(due, next) - rig->now;

			if (af_earlier(due, next) <= rig->now + 1)
				break;
			rig->now += check_random(2) ? left - 1 : 1 + check_random((uint32_t)left - 1);
			look(rig);
			world.nb_looks++;
			due = due_at(rig);
		}
		world.nb_sleeps += next > rig->now;
		world.slept_ns += next > rig->now ? next - rig->now : 0;
		rig->now = next > rig->now ? next : rig->now + AF_SLEEP_FIRST_NS;
	}
}

#endif
