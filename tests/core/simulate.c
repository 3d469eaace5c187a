/* Senders and a receiver, state machine against state machine, over simulated Ethernet segments on a simulated clock.
 *
 * The same seed gives the same run, event for event; `trace` in the outcome is a hash over all of them, and trace=1
 * prints them. What is checked:
 *
 *   - a slice that its sender was told is delivered was handed over once, in order, with the same bytes;
 *   - none was handed over that its sender did not send, and none twice;
 *   - where the receiver's user confirms, or fails, slices (confirm=1, or every n-th fails), senders are told just
 * that;
 *   - no window is ever exceeded, and each counts its chunks in flight; the receiver's counts are those of its lists;
 *   - all memory comes back; everything ends within the scenario's time, and so does the goodbye.
 *
 * Usage: simulate NAME=VALUE …   (see `options` in scenario.h)
 *
 *   simulate draw=1 seed=1 seeds=1000   a thousand worlds, all that happens in them drawn from the seed
 *   simulate draw=1 seed=77 trace=1     one of them, told
 *   simulate loss=100 senders=2         a world by hand
 *   simulate draw=1 log=1 | sha256sum   every frame that was sent, byte for byte
 *
 * Prints one JSON object for the seeds together; the exit code is 0 when all held, and the first seed that fails is
 * named.
 */
#include "outcome.h"

static uint32_t work; /* frames that moved in this turn */

/* ---- what holds at any time ---- */

static void
check_windows(struct sender *s)
{
	for (int p = 0; p < o.ports; p++) {
		struct af_tx_port *port = &s->tx.ports[p];
		uint32_t in_flight = 0;

		for (uint64_t n = port->pn.judged; port->open && n < port->pn.next; n++)
			in_flight += af_tx_sent(&port->pn, n)->state == AF_SENT_IN_FLIGHT &&
				     !af_tx_sent(&port->pn, n)->probe;
		if (port->open && in_flight != port->pn.in_flight)
			fail("a window counts what is not in flight", p, (int)in_flight);
	}
}

static void
check_receiver(void)
{
	uint32_t flowing = 0, waiting = 0, listed = 0, paths[AF_MAX_PORTS] = {0};
	uint64_t charged = 0;

	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		const struct af_rx_session *session = rx->sessions[i];

		for (int k = 0; k < (int)AF_RX_SLOTS; k++) {
			const struct af_rx_slice *s = session->slots[k].slice;

			flowing += session->slots[k].state == AF_RX_FLOWING;
			waiting += session->slots[k].state == AF_RX_WAITING;
			charged += s && s->block ? s->block->charged : 0;
			if (session->closed && session->slots[k].state != AF_RX_EMPTY)
				fail("a session that is closed holds a slice", (int)i, k);
		}
		for (uint32_t k = 0; k < AF_MAX_PORTS; k++)
			if (session->paths[k].known)
				paths[session->paths[k].port]++;
	}
	for (const struct af_rx_slice *s = rx->waiting; s; s = s->next_waiting)
		listed++;
	for (uint32_t i = 0; i < nb_held; i++)
		charged += held[i].slice->block ? held[i].slice->block->charged : 0;
	for (int p = 0; p < o.ports; p++)
		if (paths[p] != rx->ports[p].nb_paths)
			fail("a port counts paths that it has not", p, (int)paths[p]);
	if (flowing != rx->flowing || waiting != listed)
		fail("the receiver's counts are wrong", (int)flowing, (int)rx->flowing);
	if (charged != arena->used)
		fail("the arena counts bytes that no slice holds", -1, -1);
}

/* ---- a turn ---- */

static void
poll_sender(struct sender *s, uint32_t p)
{
	uint8_t frame[AF_MAX_FRAME];

	for (int k = 0; k < 4; k++) {
		const struct af_tx_pktnum *pn = &s->tx.ports[p].pn;
		uint32_t in_flight = pn->in_flight, len = af_tx_next_frame(&s->tx, p, now, NULL, frame);

		if (!len)
			break;
		if (len > (uint32_t)o.frame || (pn->in_flight > in_flight && in_flight >= pn->limit))
			fail("a frame or window too large", -1, (int)p);
		transmit(FORTH, p, now, frame, len);
		work++;
	}
}

static void
hear_sender(struct sender *s, uint32_t p, struct packet *in)
{
	if (s->tx.ports[p].p.attached && in->len >= 6 && !memcmp(in->bytes, s->tx.ports[p].p.mac, 6))
		af_tx_on_frame(&s->tx, p, now, in->bytes, in->len, NULL);
}

static void
poll_receiver(uint32_t p)
{
	uint8_t frame[AF_MAX_FRAME];
	struct packet *in;

	while ((in = arrive(FORTH, p, now))) {
		if (af_rx_on_frame(rx, p, now, in->bytes, in->len, in))
			kept_out++;
		else
			free(in);
		work++;
	}
	for (int k = 0; k < 4; k++) {
		uint32_t len = af_rx_next_frame(rx, p, now, NULL, frame);

		if (!len)
			break;
		if (len > (uint32_t)o.frame)
			fail("a report too large", -1, (int)p);
		transmit(BACK, p, now, frame, len);
		work++;
	}
}

/* Cancel what the scenario cancels, once half of it has been sent. */
static void
cancel_some(struct sender *s)
{
	for (int i = 0; o.cancel && i < s->nb_posted; i++) {
		struct af_tx_slice *slice = &s->slices[i];

		if (i % o.cancel == o.cancel - 1 && atomic_load(&slice->state) == AF_TX_FLOWING &&
		    !atomic_load(&slice->cancel) && slice->next_chunk > slice->nb_chunks / 2) {
			note(now, "slice %d is cancelled", i);
			happened[CANCEL]++;
			atomic_store(&slice->cancel, 1);
		}
	}
}

/* What happens to whole processes and ports, once each. */
static void
strike(void)
{
	struct sender *first = senders[0];
	int last = o.ports - 1;

	if (is_within(now, o.rx_restart_ms, 0) && !happened[RX_RESTART]++) {
		note(now, "the receiver restarts");
		drop_receiver();
		make_receiver();
	}
	if (is_within(now, o.tx_restart_ms, 0) && !happened[TX_RESTART]++) {
		note(now, "sender 0 restarts");
		restart_sender(first, 0);
	}
	if (is_within(now, o.unplug_ms, o.unplug_for_ms) && first->tx.ports[last].p.attached) {
		note(now, "port %d of sender 0 goes", last);
		happened[UNPLUG]++;
		af_tx_detach(&first->tx, (uint32_t)last, now);
	} else if (!first->tx.ports[last].p.attached && !is_within(now, o.unplug_ms, o.unplug_for_ms)) {
		note(now, "port %d of sender 0 is back", last);
		make_port(first, 0, last);
	}
}

static void
turn(void)
{
	bool paused = is_within(now, o.pause_ms, o.pause_for_ms);
	bool tx_paused = paused && o.pause_way & 2, rx_paused = paused && o.pause_way & 1;
	struct packet *in;

	happened[PAUSE] += paused;
	strike();
	for (int p = 0; p < o.ports; p++) {
		for (int s = tx_paused; s < o.senders; s++)
			poll_sender(senders[s], (uint32_t)p);
		if (!rx_paused)
			poll_receiver((uint32_t)p);
		while ((in = arrive(BACK, (uint32_t)p, now))) {
			if (tx_paused && in->len >= 6 && !memcmp(in->bytes, senders[0]->tx.ports[p].p.mac, 6) &&
			    af_fault_line_hold(&lines[BACK][p], flow_ns + (uint64_t)(o.pause_ms + o.pause_for_ms) * MS,
					       in))
				continue; /* it waits in that port's ring */
			for (int s = tx_paused; s < o.senders; s++)
				hear_sender(senders[s], (uint32_t)p, in);
			free(in);
			work++;
		}
	}
	for (int s = tx_paused; s < o.senders; s++) {
		cancel_some(senders[s]);
		af_tx_tick(&senders[s]->tx, now);
	}
	if (!rx_paused) {
		af_rx_tick(rx, now);
		happened[STARVE] += rx->waiting != NULL;
		waited += rx->waiting != NULL;
		use_slices();
	}
}

/* Frames move every 10 us; when none does the clock leaps, as an idle loop sleeps, but not beyond the next arrival. */
static void
advance(void)
{
	static uint64_t step;
	uint64_t arrival = next_arrival();

	step = work || !step ? 10000 : step < 1000000 ? step + step / 2 : step;
	if (arrival > now + 10000 && arrival < now + step)
		now = arrival;
	else
		now += arrival <= now + 10000 ? 10000 : step;
	work = 0;
}

/* ---- a run ---- */

static bool
post_some(uint32_t turns)
{
	static bool enough, busy;

	if (turns % 8)
		return busy;
	enough = o.draw && net.sent >= (uint64_t)o.frames_wanted && kinds_happened() >= 3;
	busy = false;
	for (int s = 0; s < o.senders; s++) {
		int unfinished = nb_unfinished(senders[s]);

		for (; !enough && unfinished < (o.queue ? o.queue : o.slices) && senders[s]->nb_posted < o.slices;
		     unfinished++)
			post_slice(senders[s]);
		busy |= unfinished > 0;
	}
	return busy;
}

/* The control plane waits for an answer to a goodbye but so long; here, as long as there is one to be had. */
static bool
can_part(const struct af_tx *tx)
{
	bool path = false;

	for (int p = o.die_ms && !o.back_ms; p < o.ports; p++)
		path |= tx->ports[p].open;
	return path && tx->open && af_rx_session_of(rx, tx->session);
}

static void
say_goodbye(uint64_t end)
{
	for (bool heard = false; !heard;) {
		advance();
		if (now > end)
			fail("the goodbye did not end in time", -1, -1);
		heard = true;
		for (int s = 0; s < o.senders; s++) {
			senders[s]->tx.closing = true;
			heard &= senders[s]->tx.bye_heard || !can_part(&senders[s]->tx);
		}
		turn();
	}
	check_receiver();
}

static void
check_outcome(void)
{
	for (int s = 0; s < o.senders; s++)
		for (int i = 0; i < senders[s]->nb_posted; i++) {
			struct af_tx_slice *slice = &senders[s]->slices[i];
			int times = senders[s]->handed_over[i];

			if (times > 1)
				fail("handed over twice", s, i);
			if (atomic_load(&slice->state) == AF_TX_DONE && !times)
				fail("reported as delivered, but it was not", s, i);
			if (o.confirm && atomic_load(&slice->state) == AF_TX_DONE && senders[s]->judged[i] != 'c')
				fail("reported as delivered, but its receiver's user has not said so", s, i);
			if (slice->error == AF_TX_FAILED_BY_USER) {
				char text[3000];

				if (senders[s]->judged[i] != 'f')
					fail("reported as failed by its receiver's user, who did not", s, i);
				if (slice->text_bytes != text_of(i, text) || slice->text_got != slice->text_bytes ||
				    memcmp(slice->text, text, slice->text_bytes))
					fail("the user's words are not those that were said", s, i);
				continue;
			}
			if (slice->error && slice->error != AF_TX_CANCELLED &&
			    !(o.rx_restart_ms && slice->error == AF_TX_RESTARTED) &&
			    !((o.outage_for_ms >= o.timeout_ms ||
			       (o.pause_for_ms >= o.timeout_ms && o.pause_way & 1)) &&
			      (slice->error == AF_TX_SILENT || slice->error == AF_TX_NO_PEER)))
				fail("failed without a reason", s, i);
			if (slice->error == AF_TX_CANCELLED && !o.cancel && !o.tx_restart_ms)
				fail("cancelled without a request", s, i);
		}
}

static void
add_up(uint64_t ended)
{
	uint64_t sent = 0;

	for (int s = 0; s < o.senders; s++) {
		for (int i = 0; i < senders[s]->nb_posted; i++) {
			const struct af_tx_slice *slice = &senders[s]->slices[i];

			sent += slice->frames;
			sum.again += slice->retransmits;
			sum.delivered += atomic_load(&slice->state) == AF_TX_DONE;
			sum.failed += slice->error != 0;
			sum.nbytes += slice->nbytes;
		}
		for (int p = 0; p < o.ports; p++)
			sum.spurious += senders[s]->tx.ports[p].pn.spurious;
		sum.suspended += senders[s]->tx.suspensions;
		sum.probes += senders[s]->tx.probes;
		sum.lives += 1 + (senders[s]->tx.instance & 0xffff);
	}
	for (int k = 0; k < NB_FAULTS; k++)
		sum.by_kind[k] += k < OUTAGE ? count_fault((enum af_fault_kind)k) : happened[k];
	sum.overflowed += count_fault(AF_FAULT_OVERFLOW);
	sum.frames += sent;
	sum.sent += net.sent;
	sum.first += net.first;
	sum.last += net.last;
	sum.cut += net.cut;
	sum.muted += net.muted;
	sum.overtaken = net.overtaken > sum.overtaken ? net.overtaken : sum.overtaken;
	sum.fewest_frames = net.sent < sum.fewest_frames ? net.sent : sum.fewest_frames;
	sum.total_ns += ended - START_NS;
	if (ended - START_NS > sum.longest_ns) {
		sum.longest_ns = ended - START_NS;
		sum.longest_seed = o.seed;
	}
	sum.hash = (sum.hash ^ trace_hash) * 0x9e3779b97f4a7c15ull;
}

static void
run_seed(void)
{
	uint64_t end;
	uint32_t turns = 0;

	now = START_NS;
	senders_made = receivers_made = 0;
	seed_random((uint64_t)o.seed);
	af_numbers_init(&numbers, (uint64_t[]){(uint64_t)o.seed, 1});
	if (o.draw)
		draw_scenario();
	else
		rules_of_options();
	open_network();
	arena = o.keep ? &in_place : &assembled;
	arena->limit = (uint64_t)o.memory_kb << 10;
	make_receiver();
	for (int s = 0; s < o.senders; s++)
		senders[s] = make_sender(s);
	end = now + (uint64_t)o.limit_ms * MS;
	while (post_some(turns)) {
		advance();
		if (now > end)
			fail("did not end in time", -1, -1);
		turn();
		if (++turns % 32 == 0) {
			for (int s = 0; s < o.senders; s++)
				check_windows(senders[s]);
			check_receiver();
		}
	}
	end = now;
	check_outcome();
	if (o.draw && (kinds_happened() < 3 || net.sent < 200))
		sum.mild++;
	say_goodbye(now + (uint64_t)o.limit_ms * MS);
	check_outcome();
	sum.receivers += receivers_made;
	drop_receiver();
	add_up(end);
	for (int s = 0; s < o.senders; s++)
		free_sender(senders[s]);
	close_network();
}

int
main(int argc, char **argv)
{
	struct scenario asked;

	read_options(argc, argv);
	if (o.slices > MAX_SLICES || o.senders > MAX_SENDERS || o.ports > (int)AF_MAX_PORTS)
		return 2;
	if (af_arena_init(&assembled, 64u << 20, true) || af_arena_init(&in_place, 64u << 20, false))
		return 2;
	asked = o;
	for (int i = 0; i < asked.seeds; i++) {
		o = asked;
		o.seed = asked.seed + i;
		run_seed();
	}
	o = asked;
	print_outcome();
	af_arena_free(&assembled);
	af_arena_free(&in_place);
	return 0;
}
