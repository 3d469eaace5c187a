/* Senders and receivers on the ports of a few nodes, state machine against state machine, over simulated Ethernet
 * segments on a simulated clock.
 *
 * The same seed gives the same run, event for event; `trace` in the outcome is a hash over all of them, and trace=1
 * prints them. What is checked, for each agent (invariants.h, handed_over.h):
 *
 *   - a slice that its sender was told is delivered was handed over once, in order, with the same bytes, by the
 *     receiver that it was for;
 *   - none was handed over that its sender did not send, and none twice;
 *   - where the receiver's user confirms, or fails, slices (confirm=1, or every n-th fails), senders are told just
 *     that;
 *   - no window is ever exceeded, nor a port's by all its senders together, and each window counts its chunks in
 *     flight; a receiver's counts are those of its lists;
 *   - no two sessions of a process have the same number, though those of two processes may;
 *   - where nodes share memory (placed.h), a chunk is written to its own slice before it has arrived, or to a block
 * that is fenced; who may still write has such a block;
 *   - all memory comes back; everything ends within the scenario's time, and so does the goodbye.
 *
 * Usage: simulate NAME=VALUE …   (see `options` in scenario.h)
 *
 *   simulate draw=1 seed=1 seeds=1000   a thousand worlds of one receiver, all that happens in them drawn from the seed
 *   simulate draw=2 seed=1 seeds=1000   worlds of two or three nodes, each with senders and receivers on its ports
 *   simulate draw=3 seed=1 seeds=1000   worlds of nodes that share memory
 *   simulate draw=2 seed=77 trace=1     one of them, told
 *   simulate loss=100 senders=2         a world by hand
 *   simulate draw=1 log=1 | sha256sum   every frame that was sent, byte for byte
 *
 * Prints one JSON object for the seeds together; the exit code is 0 when all held, and the first seed that fails is
 * named.
 */
#include "events.h"

static uint32_t work; /* frames that moved in this turn */

/* ---- a turn ---- */

static void
read_ring(int n, uint32_t p)
{
	for (struct packet *in; (in = leave_ring(&rings[n][p])); work++) {
		if (af_demux_on_frame(&nodes[n].demux, p, now, in->bytes, in->len, in))
			kept_out++;
		else
			free(in);
	}
}

static void
write_frames(int n, uint32_t p)
{
	struct af_demux *demux = &nodes[n].demux;
	uint8_t frame[AF_MAX_FRAME];
	uint32_t before[MAX_SENDERS];
	const struct af_span *tail;

	memset(before, 0xff, sizeof before);
	check_port(n, p, before);
	for (uint32_t k = 0; k < 4 * demux->lines[p].nb; k++) {
		uint32_t len = af_demux_next_frame(demux, p, now, frame, &tail);

		if (!len)
			break;
		check_port(n, p, before);
		if (len > (uint32_t)o.frame)
			fail("a frame too large", -1, (int)p);
		if (note_write(n, p, frame, len))
			return;
		transmit(n, p, now, frame, len);
		work++;
	}
}

static void
turn_node(int n)
{
	for (uint32_t p = 0; p < (uint32_t)o.ports && !is_stuck(n); p++) {
		read_ring(n, p);
		write_frames(n, p);
	}
	if (is_stuck(n))
		return;
	af_demux_tick(&nodes[n].demux, now);
	for (int i = 0; i < nb_receivers; i++)
		if (receivers[i].at.node == n) {
			happened[STARVE] += receivers[i].rx->waiting != NULL;
			waited += receivers[i].rx->waiting != NULL;
		}
}

static bool
is_stopped(int n)
{
	const struct receiver *last = &receivers[nb_receivers - 1];

	return (is_paused_by_plan(n) && is_within(now, o.pause_ms, o.pause_for_ms)) ||
	       (n == last->at.node && is_silent(last)) || is_stuck(n);
}

/* sleep=1: a node without work sleeps until a frame arrives, its users want something, or an agent of its is due. */
static bool
is_asleep(int n)
{
	bool awake = !o.sleep || nodes[n].poked || now >= nodes[n].wake_ns;

	for (int p = 0; p < o.ports && !awake; p++)
		awake = rings[n][p].first != NULL;
	return !awake;
}

static void
go_to_sleep(int n)
{
	nodes[n].wake_ns = af_demux_due(&nodes[n].demux, now);
}

static void
turn(void)
{
	happened[PAUSE] += is_within(now, o.pause_ms, o.pause_for_ms);
	for (int n = 0; n < nb_nodes; n++)
		wake_up(n);
	restart_some();
	unplug_some();
	renew_some();
	follow_deaths();
	pass_frames(now);
	for (int n = 0; n < nb_nodes; n++) {
		uint32_t before = work;

		if (is_stopped(n))
			continue;
		cancel_some(n);
		if (!is_asleep(n)) {
			nodes[n].poked = false;
			nodes[n].wake_ns = 0;
			turn_node(n);
			if (o.sleep && work == before)
				go_to_sleep(n);
		}
		for (int i = 0; i < nb_receivers; i++)
			if (receivers[i].at.node == n)
				use_slices(&receivers[i]);
	}
}

/* When a frame arrives, or a node that sleeps wakes. */
static uint64_t
next_event(void)
{
	uint64_t next = next_arrival();

	for (int n = 0; n < nb_nodes && o.sleep; n++)
		if (nodes[n].wake_ns > now && nodes[n].wake_ns < next && !is_stopped(n))
			next = nodes[n].wake_ns;
	return next;
}

/* Frames move every 10 us; when none does the clock leaps, as an idle loop sleeps, but not beyond the next arrival. */
static void
advance(void)
{
	static uint64_t step;
	uint64_t arrival = next_event();

	step = work || !step ? 10000 : step < 1000000 ? step + step / 2 : step;
	if (arrival > now + 10000 && arrival < now + step)
		now = arrival;
	else
		now += arrival <= now + 10000 ? 10000 : step;
	work = 0;
}

/* ---- who is in a world ---- */

static void
add_receiver(int node, uint32_t mask, bool reversed)
{
	struct receiver *r = &receivers[nb_receivers++];

	r->keeps = o.keep == 2 ? nb_receivers % 2 : o.keep;
	r->arena = &r->arenas[r->keeps];
	r->arena->limit = (uint64_t)o.memory_kb << 10;
	r->restarted = r->unplugged = false;
	snprintf(r->name, sizeof r->name, "sink-%d", nb_receivers - 1);
	place_agent(&r->at, node, mask, reversed);
	make_receiver(r);
}

static void
add_sender(int node, int to, uint32_t mask, bool reversed)
{
	struct sender *s = senders[nb_senders++] = malloc(sizeof *s);

	memset(s, 0, offsetof(struct sender, slices));
	s->to = to;
	s->named = o.named;
	place_agent(&s->at, node, mask, reversed);
	make_tx(s, nb_senders - 1);
}

/* The ports of an agent. Both ends of a session are on the last two segments: two paths at least, for one may be dead.
 */
static uint32_t
draw_ports(void)
{
	uint32_t all = (1u << o.ports) - 1;

	return o.unlike && draw(2) ? (draw(all + 1) | (3u << o.ports >> 2)) & all : all;
}

/* One receiver; each sender has a node of its own. */
static void
lay_out_one_receiver(void)
{
	uint32_t all = (1u << o.ports) - 1;

	o.direct = o.senders == 1;
	add_receiver(0, all, false);
	for (int i = 0; i < o.senders; i++)
		add_sender(1 + i, 0, all, false);
}

/* One node with a sender for each receiver; each receiver has a node of its own. */
static void
lay_out_fan(void)
{
	o.direct = o.apart;
	o.named = 1;
	for (int i = 0; i < o.receivers; i++)
		add_receiver(1 + i, segments_of[1 + i], false);
	for (int i = 0; i < o.receivers; i++)
		add_sender(0, i, segments_of[0], false);
}

/* The hub and each other node send to each other. Sender 0 is on node 1, receiver 0 on the hub. */
static void
lay_out_hub(void)
{
	uint32_t all = (1u << o.ports) - 1;

	for (int spoke = 1; spoke < nb_nodes && o.share; spoke++)
		connect_nodes(spoke);
	for (int i = 0; i < o.receivers; i++)
		add_receiver(0, all, false);
	for (int spoke = 1; spoke < nb_nodes; spoke++)
		add_receiver(spoke, segments_of[spoke], false);
	for (int spoke = 1; spoke < nb_nodes; spoke++) {
		for (int i = 0; i < o.senders; i++)
			add_sender(spoke, i % o.receivers, segments_of[spoke], spoke == 2);
		add_sender(0, o.receivers + spoke - 1, segments_of[spoke], false);
	}
}

/* Each node has senders and receivers. Sender 0 is not on the node of receiver 0. */
static void
lay_out_nodes(void)
{
	o.named |= o.receivers > 1 || o.nodes > 2 || o.inward; /* else only one receiver may answer it */
	for (int n = 0; n < o.nodes; n++)
		for (int i = 0; i < o.receivers; i++)
			add_receiver(n, draw_ports(), o.unlike && draw(2));
	for (int i = 0; i < o.senders; i++)
		for (int n = 0; n < o.nodes; n++) {
			int node = (n + 1) % o.nodes, peer = (node + 1 + i % (o.nodes - 1)) % o.nodes;

			if (o.inward && nb_senders % 2)
				peer = node;
			add_sender(node, peer * o.receivers + i % o.receivers, draw_ports(), o.unlike && draw(2));
		}
}

static void
lay_out_world(void)
{
	uint32_t all = (1u << o.ports) - 1;

	nb_nodes = o.nodes ? o.nodes : 1 + (o.fan ? o.receivers : o.senders);
	processes_begun = receivers_made = senders_made = 0;
	for (int n = 0; n < nb_nodes; n++) {
		way_of[n] = (n == 0) != o.fan ? BACK : FORTH;
		segments_of[n] = all;
		for (int p = 0; o.apart && n && p < o.ports; p++)
			if (p % o.receivers != n - 1)
				segments_of[n] &= ~(1u << p);
		for (int p = 0; o.hub && n && p < o.ports; p++)
			if (spoke_of((uint32_t)p) != n)
				segments_of[n] &= ~(1u << p);
		begin_process(n);
	}
	nb_senders = nb_receivers = 0;
	nb_funerals = 0;
	memset(severed, 0, sizeof severed);
	memset(stuck, 0, sizeof stuck);
	if (o.hub)
		lay_out_hub();
	else if (o.nodes)
		lay_out_nodes();
	else if (o.fan)
		lay_out_fan();
	else
		lay_out_one_receiver();
}

/* ---- a run ---- */

/* Of its share, where senders are renewed. */
static bool
may_post(const struct sender *s)
{
	return s->nb_posted < o.slices && (!o.lives || s->nb_posted - s->first < o.lives);
}

static bool
post_some(uint32_t turns)
{
	static bool enough, busy;

	if (turns % 8)
		return busy;
	enough = o.draw && net.sent >= (uint64_t)o.frames_wanted &&
		 (kinds_happened() >= 3 || (o.lives && net.sent >= 10 * (uint64_t)o.frames_wanted));
	busy = false;
	for (int s = 0; s < nb_senders; s++) {
		int unfinished = nb_unfinished(senders[s]);
		bool closing = senders[s]->tx.closing;

		if (!unfinished && senders[s]->nb_posted && !senders[s]->ended_ns)
			senders[s]->ended_ns = now;
		for (; !enough && !closing && unfinished < (o.queue ? o.queue : o.slices) && may_post(senders[s]);
		     unfinished++)
			post_slice(senders[s]);
		busy |= unfinished > 0 || (!enough && senders[s]->nb_posted < o.slices); /* the latter: it is renewed */
	}
	return busy;
}

static void
say_goodbye(uint64_t end)
{
	for (bool parted = false; !parted;) {
		advance();
		if (now > end)
			fail("the goodbye did not end in time", -1, -1);
		parted = true;
		for (int s = 0; s < nb_senders; s++)
			parted &= has_parted(senders[s]);
		turn();
	}
	check_all();
}

static void
add_up(uint64_t ended)
{
	uint64_t sent = 0;

	for (int s = 0; s < nb_senders; s++) {
		for (int i = 0; i < senders[s]->nb_posted; i++) {
			const struct af_tx_slice *slice = &senders[s]->slices[i];

			sent += slice->frames;
			sum.again += slice->retransmits;
			sum.delivered += atomic_load(&slice->state) == AF_TX_DONE;
			sum.failed += slice->error != 0;
			sum.nbytes += slice->nbytes;
		}
		for (uint32_t p = 0; p < senders[s]->tx.nb_ports; p++)
			sum.spurious += senders[s]->tx.ports[p].pn.spurious;
		sum.suspended += senders[s]->tx.suspensions;
		sum.probes += senders[s]->tx.probes;
		sum.lives += 1 + (senders[s]->tx.instance & 0xffff);
		sum.ended_ns[s] = senders[s]->ended_ns;
	}
	sum.nb_senders = nb_senders;
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
	was_gone = false;
	seed_random((uint64_t)o.seed);
	if (o.draw)
		draw_scenario();
	else
		rules_of_options();
	open_network();
	lay_out_world();
	end = now + (uint64_t)o.limit_ms * MS;
	while (post_some(turns)) {
		advance();
		if (now > end)
			fail("did not end in time", -1, -1);
		turn();
		if (++turns % 32 == 0)
			check_all();
	}
	end = now;
	check_outcome();
	if (o.draw && (kinds_happened() < 3 || net.sent < 200))
		sum.mild++;
	say_goodbye(now + (uint64_t)o.limit_ms * MS);
	check_outcome();
	sum.receivers += receivers_made;
	for (int i = 0; i < nb_receivers; i++)
		drop_receiver(&receivers[i]);
	if (kept_out)
		fail("frames did not come back", -1, -1);
	add_up(end);
	for (int s = 0; s < nb_senders; s++)
		free_sender(senders[s]);
	close_links();
	close_network();
}

int
main(int argc, char **argv)
{
	struct scenario asked;

	read_options(argc, argv);
	if (o.slices > MAX_SLICES || o.ports > (int)AF_MAX_PORTS || o.nodes > MAX_NODES ||
	    (o.nodes ? o.nodes : 1) * o.senders > MAX_SENDERS ||
	    (o.nodes ? o.nodes : 1) * o.receivers > MAX_RECEIVERS ||
	    (!o.nodes && (o.fan ? o.receivers : o.senders) >= MAX_NODES) || (o.hub && (o.nodes != 3 || o.ports < 2)))
		return 2;
	for (int i = 0; i < MAX_RECEIVERS; i++)
		for (int keeps = 0; keeps < 2; keeps++)
			if (af_arena_init(&receivers[i].arenas[keeps], 64u << 20,
					  keeps ? AF_ARENA_NONE : AF_ARENA_PRIVATE))
				return 2;
	asked = o;
	for (int i = 0; i < asked.seeds; i++) {
		o = asked;
		o.seed = asked.seed + i;
		run_seed();
	}
	o = asked;
	print_outcome();
	for (int i = 0; i < MAX_RECEIVERS; i++)
		for (int keeps = 0; keeps < 2; keeps++)
			af_arena_free(&receivers[i].arenas[keeps], true);
	return 0;
}
