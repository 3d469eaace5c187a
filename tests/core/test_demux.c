/* demux.h: agents on shared ports, each one told its own frames, and asked in turn for the next. */
#include "aiflow/rt/demux.h"

#include "check.h"

#define WINDOW 20u

/* An agent that notes what it is asked. */
struct fake {
	struct af_agent agent;
	uint32_t number; /* that it gave its peer */
	uint32_t heard, heard_on;
	uint32_t in_flight, window;
	uint32_t frames; /* that it has to send */
	struct af_budget given; /* with the last call of next_frame that had one */
	struct af_span tail;
	bool busy, changed;
};

static struct af_demux demux;
static uint32_t nb_ticks;

static bool
on_frame(void *state, uint32_t port, uint64_t now, const uint8_t *frame, uint32_t len, void *handle)
{
	struct fake *fake = state;

	(void)now;
	(void)frame;
	(void)len;
	fake->heard++;
	fake->heard_on = port;
	return handle != NULL;
}

static uint32_t
next_frame(void *state, uint32_t port, uint64_t now, struct af_budget *budget, uint8_t *frame)
{
	struct fake *fake = state;

	(void)now;
	if (budget)
		fake->given = *budget;
	if (!fake->frames || (budget && fake->agent.role == AF_SENDS && fake->in_flight >= budget->frames))
		return 0;
	fake->frames--;
	fake->in_flight += fake->agent.role == AF_SENDS;
	if (budget)
		budget->due_ns += 1000;
	frame[0] = (uint8_t)port;
	return 60;
}

static bool
tick(void *state, uint64_t now)
{
	(void)now;
	nb_ticks++;
	return ((struct fake *)state)->changed;
}

static bool
owns(const void *state, uint32_t number)
{
	return ((const struct fake *)state)->number == number;
}

static struct af_load
load(const void *state, uint32_t port)
{
	const struct fake *fake = state;

	(void)port;
	return (struct af_load){.window = fake->window, .in_flight = fake->in_flight, .busy = fake->busy};
}

static struct fake *
make(struct fake *fake, enum af_role role, uint32_t number)
{
	*fake = (struct fake){.number = number, .window = WINDOW, .busy = true};
	fake->agent = (struct af_agent){.state = fake,
					.role = role,
					.instance = (uint64_t)number << AF_LIFE_BITS,
					.tail = &fake->tail,
					.on_frame = on_frame,
					.next_frame = next_frame,
					.tick = tick,
					.owns = owns,
					.load = load};
	CHECK(af_demux_add(&demux, &fake->agent));
	return fake;
}

/* A frame of a kind comes to port 0, for the holder of a number. True when it is kept. */
static bool
arrive(uint8_t kind, uint32_t number, uint32_t element)
{
	struct af_header h = {
		.frame_id = AF_VERSION << 4 | kind, .session = AF_BE32(number), .element = AF_BE32(element)};
	uint8_t frame[AF_HEADER + sizeof(struct af_hello)] = {0};

	memcpy(frame, &h, sizeof h);
	return af_demux_on_frame(&demux, 0, 1, frame, sizeof frame, frame);
}

/* A sender of this instance asks for a receiver: by name, or for any. */
static void
ask(uint64_t instance, bool names_one)
{
	struct af_header h = {.frame_id = AF_VERSION << 4 | AF_HELLO};
	struct af_hello hello = {.sender = AF_BE64(instance << AF_LIFE_BITS | 3), .to_len = names_one};
	uint8_t frame[AF_HEADER + sizeof hello];

	memcpy(frame, &h, sizeof h);
	memcpy(frame + AF_HEADER, &hello, sizeof hello);
	CHECK(!af_demux_on_frame(&demux, 0, 1, frame, sizeof frame, frame));
}

static void
begin(void)
{
	memset(&demux, 0, sizeof demux);
	nb_ticks = 0;
}

static void
a_frame_goes_to_the_agent_that_gave_its_peer_the_number(void)
{
	static const uint8_t to_receivers[] = {AF_DATA, AF_PACKED, AF_MANIFEST, AF_PROBE, AF_VOID, AF_CLOSE};
	static const uint8_t to_senders[] = {AF_GRANT, AF_FEEDBACK, AF_HELLO};
	struct fake tx[2], rx[2];

	begin();
	for (uint32_t i = 0; i < 2; i++) {
		af_demux_plug(&demux, 0, &make(&tx[i], AF_SENDS, 10 + i)->agent, 3 + i, NULL);
		af_demux_plug(&demux, 0, &make(&rx[i], AF_RECEIVES, 20 + i)->agent, 5 + i, NULL);
	}
	for (uint32_t i = 0; i < 2; i++) {
		for (size_t k = 0; k < sizeof to_receivers; k++)
			CHECK(arrive(to_receivers[k], 20 + i, 0));
		for (size_t k = 0; k < sizeof to_senders; k++)
			CHECK(arrive(to_senders[k], 10 + i, 0));
		CHECK(arrive(AF_BYE, 20 + i, AF_BYE_SENDER));
		CHECK(arrive(AF_BYE, 10 + i, AF_BYE_RECEIVER));
		CHECK_EQUAL(rx[i].heard, sizeof to_receivers + 1);
		CHECK_EQUAL(tx[i].heard, sizeof to_senders + 1);
		CHECK_EQUAL(rx[i].heard_on, 5 + i); /* each has numbers of its own for ports */
		CHECK_EQUAL(tx[i].heard_on, 3 + i);
	}
	/* Equal numbers of both sides: the direction tells them apart. */
	tx[1].number = 20;
	arrive(AF_FEEDBACK, 20, 0);
	arrive(AF_BYE, 20, AF_BYE_RECEIVER);
	CHECK_EQUAL(tx[1].heard, sizeof to_senders + 3);
	CHECK_EQUAL(rx[0].heard, sizeof to_receivers + 1);
}

static void
what_belongs_to_no_one_is_counted_once(void)
{
	struct fake tx, rx[2];

	begin();
	CHECK(!arrive(AF_DATA, 1, 0)); /* no agent */
	af_demux_plug(&demux, 0, &make(&tx, AF_SENDS, 10)->agent, 0, NULL);
	arrive(AF_DATA, 77, 0); /* the only one: it counts whatever comes */
	CHECK_EQUAL(tx.heard, 1);
	for (int i = 0; i < 2; i++)
		af_demux_plug(&demux, 0, &make(&rx[i], AF_RECEIVES, 20)->agent, 0, NULL);
	arrive(AF_DATA, 77, 0);
	arrive(AF_FEEDBACK, 77, 0);
	CHECK(!af_demux_on_frame(&demux, 0, 1, (const uint8_t *)"", 1, NULL)); /* a runt */
	CHECK_EQUAL(rx[0].heard, 1);
	CHECK_EQUAL(rx[1].heard, 0);
	CHECK_EQUAL(tx.heard, 3);
}

static void
a_question_goes_to_every_receiver_but_those_of_its_own_ports(void)
{
	struct fake tx, rx[2];

	begin();
	make(&tx, AF_SENDS, 10); /* on another port of the same demux */
	for (int i = 0; i < 2; i++)
		af_demux_plug(&demux, 0, &make(&rx[i], AF_RECEIVES, 20)->agent, 0, NULL);
	ask(99, false);
	CHECK(rx[0].heard == 1 && rx[1].heard == 1 && tx.heard == 0);
	ask(10, false); /* its own: it never pairs with them, */
	CHECK(rx[0].heard == 1 && rx[1].heard == 1);
	ask(10, true); /* … unless it names one */
	CHECK(rx[0].heard == 2 && rx[1].heard == 2);
	begin();
	af_demux_plug(&demux, 0, &make(&tx, AF_SENDS, 10)->agent, 0, NULL);
	make(&rx[0], AF_RECEIVES, 20);
	ask(99, false); /* no receiver here: the sender counts it */
	CHECK_EQUAL(tx.heard, 1);
}

static void
agents_of_a_port_send_in_turn(void)
{
	struct fake tx, rx;
	const struct af_span *tail = NULL;
	uint8_t frame[60];

	begin();
	af_demux_plug(&demux, 1, &make(&tx, AF_SENDS, 10)->agent, 0, NULL);
	af_demux_plug(&demux, 1, &make(&rx, AF_RECEIVES, 20)->agent, 7, NULL);
	CHECK_EQUAL(af_demux_next_frame(&demux, 0, 1, frame, &tail), 0);
	CHECK_EQUAL(af_demux_next_frame(&demux, 1, 1, frame, &tail), 0);
	tx.frames = 100;
	rx.frames = 2;
	for (int i = 0; i < 4; i++)
		CHECK_EQUAL(af_demux_next_frame(&demux, 1, 1, frame, &tail), 60);
	CHECK_EQUAL(rx.frames, 0); /* a sender at full speed holds up no feedback */
	CHECK_EQUAL(tx.frames, 98);
	CHECK_EQUAL(af_demux_next_frame(&demux, 1, 1, frame, &tail), 60);
	CHECK(tail == &tx.tail);
	CHECK_EQUAL(tx.given.frames, 0); /* it is alone: no budget */
}

static void
senders_share_the_window_and_the_pacing_of_a_port(void)
{
	struct fake tx[3];
	const struct af_span *tail;
	uint8_t frame[60];
	uint32_t sum = 0;

	begin();
	for (uint32_t i = 0; i < 3; i++) {
		af_demux_plug(&demux, 0, &make(&tx[i], AF_SENDS, 10 + i)->agent, 0, NULL);
		tx[i].frames = 100;
	}
	while (af_demux_next_frame(&demux, 0, 1, frame, &tail))
		sum++;
	CHECK_EQUAL(sum, WINDOW / 3 * 3);
	for (int i = 0; i < 3; i++)
		CHECK_EQUAL(tx[i].in_flight, WINDOW / 3);
	CHECK_EQUAL(demux.lines[0].due_ns, sum * 1000); /* the gaps of all add up */
	/* One that is silent keeps its part, and no more: the others never exceed what is free. */
	tx[1].busy = tx[2].busy = false;
	tx[0].in_flight = WINDOW / 3;
	while (af_demux_next_frame(&demux, 0, 1, frame, &tail))
		CHECK(tx[0].in_flight + tx[1].in_flight + tx[2].in_flight <= WINDOW);
	CHECK_EQUAL(tx[0].in_flight + tx[1].in_flight + tx[2].in_flight, WINDOW);
	/* A window of fewer frames than senders leaves one for each. */
	for (int i = 0; i < 3; i++) {
		tx[i].window = 2;
		tx[i].in_flight = 0;
		tx[i].busy = true;
	}
	for (sum = 0; af_demux_next_frame(&demux, 0, 1, frame, &tail);)
		sum++;
	CHECK_EQUAL(sum, 2);
}

static void
agents_come_and_go_in_any_order(void)
{
	static struct fake many[AF_MOST_AGENTS];
	struct fake one_more = {0};
	uint8_t frame[60];
	const struct af_span *tail;

	begin();
	for (uint32_t i = 0; i < AF_MOST_AGENTS; i++)
		for (uint32_t p = 0; p < 2; p++)
			af_demux_plug(&demux, p,
				      p ? &many[i].agent : &make(&many[i], i % 2 ? AF_SENDS : AF_RECEIVES, i)->agent, p,
				      NULL);
	CHECK(!af_demux_add(&demux, &one_more.agent));
	af_demux_unplug(&demux, 1, &many[5].agent);
	CHECK_EQUAL(demux.lines[1].nb, AF_MOST_AGENTS - 1);
	CHECK_EQUAL(demux.lines[1].nb_senders, AF_MOST_AGENTS / 2 - 1);
	CHECK_EQUAL(demux.lines[0].nb, AF_MOST_AGENTS);
	many[7].changed = true;
	CHECK(af_demux_tick(&demux, 1));
	CHECK_EQUAL(nb_ticks, AF_MOST_AGENTS); /* each one, once */
	for (uint32_t i = 0; i < AF_MOST_AGENTS; i++)
		af_demux_remove(&demux, &many[(i * 37) % AF_MOST_AGENTS].agent);
	CHECK(!demux.nb && !demux.lines[0].nb && !demux.lines[1].nb && !demux.lines[0].nb_senders);
	CHECK(!af_demux_tick(&demux, 1));
	CHECK_EQUAL(af_demux_next_frame(&demux, 0, 1, frame, &tail), 0);
}

static uint64_t
due(void *state, uint64_t now)
{
	return now + ((struct fake *)state)->window;
}

static void
the_earliest_agent_says_when_something_is_due(void)
{
	struct fake one = {.window = 500}, two = {.window = 300};

	memset(&demux, 0, sizeof demux);
	CHECK_EQUAL(af_demux_due(&demux, 1000), AF_DUE_NEVER);
	for (int i = 0; i < 2; i++) {
		struct fake *fake = i ? &two : &one;

		fake->agent = (struct af_agent){.state = fake, .role = AF_RECEIVES, .tick = tick, .owns = owns};
		CHECK(af_demux_add(&demux, &fake->agent));
	}
	one.agent.due = due;
	CHECK_EQUAL(af_demux_due(&demux, 1000), AF_DUE_UNKNOWN); /* one of them cannot say */
	two.agent.due = due;
	CHECK_EQUAL(af_demux_due(&demux, 1000), 1300);
	demux.lines[0].nb_senders = 2;
	demux.lines[0].due_ns = 1200;
	CHECK_EQUAL(af_demux_due(&demux, 1000), 1200); /* the pacing that they share */
	CHECK_EQUAL(af_demux_due(&demux, 1250), 1550);
	memset(&demux, 0, sizeof demux);
}

/* A port without such agents asks no more where its frames move. */
static void
a_port_knows_how_many_agents_adopt_its_frames(void)
{
	struct fake rx[2];

	begin();
	for (uint32_t i = 0; i < 2; i++)
		af_demux_plug(&demux, 0, &make(&rx[i], AF_RECEIVES, 20 + i)->agent, i, i ? &rx : NULL);
	CHECK_EQUAL(demux.lines[0].nb_adopting, 1);
	af_demux_unplug(&demux, 0, &rx[0].agent);
	CHECK_EQUAL(demux.lines[0].nb_adopting, 1);
	af_demux_remove(&demux, &rx[1].agent);
	CHECK_EQUAL(demux.lines[0].nb_adopting, 0);
}

CASES(CASE(a_frame_goes_to_the_agent_that_gave_its_peer_the_number), CASE(what_belongs_to_no_one_is_counted_once),
      CASE(a_question_goes_to_every_receiver_but_those_of_its_own_ports), CASE(agents_of_a_port_send_in_turn),
      CASE(senders_share_the_window_and_the_pacing_of_a_port), CASE(agents_come_and_go_in_any_order),
      CASE(the_earliest_agent_says_when_something_is_due), CASE(a_port_knows_how_many_agents_adopt_its_frames))
