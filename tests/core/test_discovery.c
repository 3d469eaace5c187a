/* discovery.h: how a sender finds its receiver, and which ports it pairs. */
#include "aiflow/tx/discovery.h"

#include "rig.h"

static struct rig rig;
static uint8_t frame[RIG_FRAME];

struct answer {
	const char *name;
	uint64_t epoch, sender;
	uint32_t session, number, p; /* p: of the sender */
	uint16_t port, nb_paths, heard, frame_size;
	uint8_t mac;
};

/* A receiver's answer comes to port `p`. */
static enum af_drop
answered(struct answer a)
{
	struct af_hello h = {.answer = 1,
			     .port = AF_BE16(a.port),
			     .nb_ports = AF_BE16(2),
			     .frame_size = AF_BE16(a.frame_size ? a.frame_size : RIG_FRAME),
			     .heard_bytes = AF_BE16(a.heard ? a.heard : RIG_FRAME),
			     .nb_paths = AF_BE16(a.nb_paths),
			     .window = AF_BE32(256),
			     .session = AF_BE32(a.session ? a.session : 5),
			     .sender = AF_BE64(a.sender ? a.sender : rig.tx.instance),
			     .epoch = AF_BE64(a.epoch ? a.epoch : 1000)};
	uint8_t src[6] = {2, 0, 0, 0, a.mac ? a.mac : 2, (uint8_t)a.port};
	struct af_frame f = {.session = a.number ? a.number : rig.tx.number};
	uint32_t size = af_hello_write(frame, src, rig.tx.ports[a.p].p.mac, f, &h, a.name ? a.name : "sink", "", 0);

	CHECK_EQUAL(af_wire_parse(frame, size, rig.tx.ports[a.p].p.mac, RIG_FRAME, &f), AF_OK);
	return af_tx_on_hello(&rig.tx, &rig.tx.ports[a.p], &f, rig.now);
}

static void
begin(uint32_t nb_ports, bool point_to_point)
{
	rig_begin(&rig, nb_ports, 1 << 20);
	for (uint32_t p = 0; p < nb_ports; p++)
		rig.tx.ports[p].p.point_to_point = point_to_point;
}

static void
small_and_full_hellos_alternate_without_a_period(void)
{
	uint32_t full = 0, period_two = 0, sizes[64];

	begin(1, true);
	for (int i = 0; i < 64; i++) {
		sizes[i] = af_tx_hello(&rig.tx, 0, rig.now, frame);
		CHECK(sizes[i] == RIG_FRAME || sizes[i] < 200);
		full += sizes[i] == RIG_FRAME;
		CHECK_EQUAL(frame[49], i + 1); /* its number */
		period_two += i > 1 && sizes[i] == sizes[i - 2];
	}
	CHECK_EQUAL(full, 32);
	CHECK(period_two > 10 && period_two < 54);
	rig_end(&rig);
}

static void
hellos_are_due_often_at_first_and_then_rarely(void)
{
	struct af_tx_port *port;

	begin(1, true);
	port = &rig.tx.ports[0];
	CHECK(af_tx_hello_due(&rig.tx, port, rig.now)); /* at once */
	port->hello_ns = rig.now;
	CHECK(!af_tx_hello_due(&rig.tx, port, rig.now + AF_HELLO_NS / 2));
	CHECK(af_tx_hello_due(&rig.tx, port, rig.now + AF_HELLO_NS));
	port->hello_ns = rig.now + 2000 * MS;
	CHECK(!af_tx_hello_due(&rig.tx, port, port->hello_ns + AF_HELLO_NS));
	CHECK(af_tx_hello_due(&rig.tx, port, port->hello_ns + AF_HELLO_SLOW_NS));
	rig.tx.closing = true;
	CHECK(!af_tx_hello_due(&rig.tx, port, port->hello_ns + AF_HELLO_SLOW_NS));
	rig_end(&rig);
}

static void
ports_with_one_possible_peer_open_when_all_have_an_answer(void)
{
	begin(2, true);
	CHECK_EQUAL(answered((struct answer){.p = 0, .port = 0}), AF_OK);
	af_tx_discover(&rig.tx, rig.now);
	CHECK(!rig.tx.open);
	CHECK_EQUAL(answered((struct answer){.p = 1, .port = 1}), AF_OK);
	af_tx_discover(&rig.tx, rig.now);
	CHECK(rig.tx.open);
	CHECK_EQUAL(rig.tx.session, 5);
	CHECK_EQUAL(rig.tx.epoch, 1000);
	CHECK(!strcmp(rig.tx.receiver, "sink"));
	CHECK_EQUAL(rig.tx.payload_bytes, RIG_PAYLOAD);
	CHECK_EQUAL(rig.tx.ports[1].remote_port, 1);
	CHECK_EQUAL(rig.tx.ports[1].pn.limit, 90);
	rig_end(&rig);
}

static void
behind_a_switch_it_listens_for_200_ms(void)
{
	begin(1, false);
	answered((struct answer){0});
	af_tx_discover(&rig.tx, rig.now + AF_DISCOVERY_NS - 1);
	CHECK(!rig.tx.open);
	af_tx_discover(&rig.tx, rig.now + AF_DISCOVERY_NS);
	CHECK(rig.tx.open);
	CHECK_EQUAL(rig.tx.ports[0].pn.limit, AF_FIRST_WINDOW); /* there may be a crowd */
	rig_end(&rig);
}

static void
paths_are_matched_one_to_one(void)
{
	begin(2, false);
	for (uint32_t p = 0; p < 2; p++)
		for (uint16_t port = 0; port < 2; port++)
			answered((struct answer){.p = p, .port = port});
	af_tx_discover(&rig.tx, rig.now + AF_DISCOVERY_NS);
	CHECK_EQUAL(rig.tx.ports[0].remote_port, 0);
	CHECK_EQUAL(rig.tx.ports[1].remote_port, 1);
	rig_end(&rig);
	begin(2, false);
	for (uint32_t p = 0; p < 2; p++)
		for (uint16_t port = 0; port < 2; port++)
			answered(
				(struct answer){.p = p, .port = port, .nb_paths = port ? 0 : 3}); /* port 0 is loaded */
	af_tx_discover(&rig.tx, rig.now + AF_DISCOVERY_NS);
	CHECK_EQUAL(rig.tx.ports[0].remote_port, 1);
	CHECK_EQUAL(rig.tx.ports[1].remote_port, 1);
	rig_end(&rig);
}

static void
two_receivers_are_ambiguous_unless_one_was_named(void)
{
	begin(1, false);
	answered((struct answer){.name = "sink"});
	rig.now += MS;
	answered((struct answer){.name = "other", .epoch = 2000, .port = 1, .mac = 3});
	rig.now += MS;
	answered((struct answer){.name = "sink"}); /* it is still there */
	af_tx_discover(&rig.tx, rig.now + AF_DISCOVERY_NS);
	CHECK(!rig.tx.open);
	CHECK_EQUAL(rig.tx.trouble, AF_TX_AMBIGUOUS);
	CHECK(strcmp(rig.tx.rivals[0].name, rig.tx.rivals[1].name));
	rig_end(&rig);
	begin(1, false);
	strcpy(rig.tx.to, "sink");
	answered((struct answer){.name = "sink"});
	answered((struct answer){.name = "other", .epoch = 2000, .port = 1, .mac = 3});
	answered((struct answer){.name = "other", .epoch = 2000, .port = 1, .mac = 3});
	af_tx_discover(&rig.tx, rig.now + AF_DISCOVERY_NS);
	CHECK(rig.tx.open && !rig.tx.trouble);
	rig_end(&rig);
}

/* They answer in one burst, from one MAC. */
static void
two_receivers_of_one_port_are_ambiguous_too(void)
{
	begin(1, true);
	for (int i = 0; i < 2; i++) {
		answered((struct answer){.name = "one"});
		answered((struct answer){.name = "two", .epoch = 2000, .session = 6});
		af_tx_discover(&rig.tx, rig.now);
		CHECK(!rig.tx.open);
		rig.now += 10 * MS;
	}
	CHECK_EQUAL(rig.tx.trouble, AF_TX_AMBIGUOUS);
	rig_end(&rig);
}

/* The new one was heard on the port that then died a moment after the old one was heard on the other. */
static void
a_receiver_that_came_back_is_found_beside_a_port_that_died(void)
{
	begin(2, true);
	answered((struct answer){.p = 1, .port = 1});
	rig.now += MS;
	answered((struct answer){.p = 0, .port = 0, .epoch = 2000, .session = 6});
	for (int i = 0; i < 5 && !rig.tx.open; i++) {
		rig.now += AF_DISCOVERY_NS / 2;
		answered((struct answer){.p = 1, .port = 1, .epoch = 2000, .session = 6});
		af_tx_discover(&rig.tx, rig.now);
	}
	CHECK(rig.tx.open);
	CHECK_EQUAL(rig.tx.epoch, 2000);
	rig_end(&rig);
}

static void
receivers_of_other_names_are_noted_once(void)
{
	begin(1, false);
	strcpy(rig.tx.to, "wanted");
	for (int i = 0; i < 3; i++) {
		answered((struct answer){.name = "first"});
		answered((struct answer){.name = "second"});
	}
	CHECK(!strcmp(rig.tx.others[0], "first") && !strcmp(rig.tx.others[1], "second") && !rig.tx.others[2][0]);
	for (int i = 0; i < 10; i++)
		af_tx_note_other(&rig.tx, (const char[AF_NAME_BYTES]){'a' + (char)i});
	CHECK(!strcmp(rig.tx.others[AF_OTHERS - 1], "b")); /* no more than there is room for */
	CHECK(!rig.tx.ports[0].nb_candidates);
	rig_end(&rig);
}

static void
a_paths_frames_fit_both_ends(void)
{
	begin(1, true);
	CHECK_EQUAL(answered((struct answer){.frame_size = 1000, .heard = 100}), AF_OK);
	CHECK_EQUAL(rig.tx.ports[0].path_size, 1000);
	CHECK(!rig.tx.ports[0].nb_candidates && rig.tx.ports[0].small_answered); /* full ones are not proved yet */
	answered((struct answer){.frame_size = 1000, .heard = 1000});
	af_tx_discover(&rig.tx, rig.now);
	CHECK(rig.tx.open);
	CHECK_EQUAL(rig.tx.payload_bytes, 1000 - AF_HEADER);
	rig_end(&rig);
	begin(1, true);
	rig.tx.fixed_frame_size = true; /* the user named it */
	answered((struct answer){.frame_size = 1000});
	CHECK_EQUAL(rig.tx.trouble, AF_TX_MTU);
	rig_end(&rig);
}

static void
full_frames_that_never_pass_are_an_error(void)
{
	begin(1, true);
	for (uint32_t i = 0; i < 4 * AF_MTU_TRIALS; i++) {
		uint32_t size = af_tx_hello(&rig.tx, 0, rig.now += AF_HELLO_NS, frame);

		if (size < RIG_FRAME)
			answered((struct answer){.heard = (uint16_t)size});
	}
	af_tx_discover(&rig.tx, rig.now);
	CHECK_EQUAL(rig.tx.trouble, AF_TX_MTU);
	rig_end(&rig);
}

static void
what_is_not_for_us_or_nonsense_changes_nothing(void)
{
	struct af_frame empty = {.kind = AF_HELLO};

	begin(1, true);
	CHECK_EQUAL(answered((struct answer){.sender = 12345}), AF_OK);
	CHECK_EQUAL(answered((struct answer){.frame_size = AF_MIN_PATH_FRAME - 1}), AF_DROP_HELLO);
	CHECK_EQUAL(af_tx_on_hello(&rig.tx, &rig.tx.ports[0], &empty, rig.now), AF_DROP_HELLO);
	CHECK(!rig.tx.ports[0].nb_candidates && !rig.tx.first_answer_ns);
	for (uint32_t i = 0; i < AF_MAX_PORTS + 5; i++) /* candidates have a bound */
		CHECK_EQUAL(answered((struct answer){.mac = (uint8_t)(10 + i)}),
			    i < AF_MAX_PORTS ? AF_OK : AF_DROP_BUSY);
	rig_end(&rig);
}

static void
a_receiver_that_came_back_as_another_ends_the_session(void)
{
	begin(1, true);
	answered((struct answer){0});
	af_tx_discover(&rig.tx, rig.now);
	CHECK(rig.tx.open);
	rig.now += AF_RIVAL_NS + 1; /* ours was not heard since */
	answered((struct answer){.epoch = 2000});
	CHECK(rig.tx.open && rig.tx.suspect_ns);
	af_tx_watch_suspect(&rig.tx, rig.now + AF_DISCOVERY_NS);
	CHECK(rig.tx.open);
	af_tx_watch_suspect(&rig.tx, rig.now + AF_DISCOVERY_NS + 1);
	CHECK(!rig.tx.open);
	rig_end(&rig);
}

static void
a_rival_of_our_receivers_name_is_noted_and_ours_goes_on(void)
{
	begin(1, true);
	answered((struct answer){0});
	af_tx_discover(&rig.tx, rig.now);
	rig.now += AF_RIVAL_NS + 1;
	answered((struct answer){.epoch = 2000, .mac = 9});
	rig.tx.heard_ns = rig.now + 1; /* ours is heard after all */
	af_tx_watch_suspect(&rig.tx, rig.now + 10 * AF_DISCOVERY_NS);
	CHECK(rig.tx.open && !rig.tx.suspect_ns);
	CHECK_EQUAL(rig.tx.rivals[0].epoch, 2000);
	CHECK_EQUAL(rig.tx.rivals[0].mac[4], 9);
	rig_end(&rig);
}

static void
a_new_session_of_the_same_receiver_restarts_ours(void)
{
	begin(1, true);
	answered((struct answer){0});
	af_tx_discover(&rig.tx, rig.now);
	answered((struct answer){.session = 6}); /* it has dropped us */
	CHECK(!rig.tx.open);
	rig_end(&rig);
}

CASES(CASE(small_and_full_hellos_alternate_without_a_period), CASE(hellos_are_due_often_at_first_and_then_rarely),
      CASE(ports_with_one_possible_peer_open_when_all_have_an_answer), CASE(behind_a_switch_it_listens_for_200_ms),
      CASE(paths_are_matched_one_to_one), CASE(two_receivers_are_ambiguous_unless_one_was_named),
      CASE(two_receivers_of_one_port_are_ambiguous_too), CASE(receivers_of_other_names_are_noted_once),
      CASE(a_receiver_that_came_back_is_found_beside_a_port_that_died), CASE(a_paths_frames_fit_both_ends),
      CASE(full_frames_that_never_pass_are_an_error), CASE(what_is_not_for_us_or_nonsense_changes_nothing),
      CASE(a_receiver_that_came_back_as_another_ends_the_session),
      CASE(a_rival_of_our_receivers_name_is_noted_and_ours_goes_on),
      CASE(a_new_session_of_the_same_receiver_restarts_ours))
