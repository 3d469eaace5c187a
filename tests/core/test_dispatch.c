/* dispatch.h: which port takes the next chunk, and of which element. */
#include "aiflow/tx/dispatch.h"

#include "rig.h"

static struct rig rig;

/* Three open ports, and a slice that is laid out. */
static struct af_tx_slice *
begin(uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s = rig_slice(n, sizes);

	rig_begin(&rig, 3, 1 << 20);
	rig.tx.payload_bytes = RIG_PAYLOAD;
	for (uint32_t p = 0; p < 3; p++) {
		rig.tx.ports[p].open = true;
		af_tx_pktnum_reset(&rig.tx.ports[p].pn, 90, 0);
	}
	CHECK(af_tx_lay_out(&rig.tx, s));
	return s;
}

static void
end(struct af_tx_slice *s)
{
	rig_slice_free(s);
	rig_end(&rig);
}

static const uint64_t one[] = {1000000};

static void
a_port_lives_while_it_is_attached_open_and_not_suspended(void)
{
	struct af_tx_slice *s = begin(1, one);
	struct af_tx_port *port = &rig.tx.ports[1];

	CHECK(af_tx_port_lives(&rig.tx, 1));
	port->suspended = true;
	CHECK(!af_tx_port_lives(&rig.tx, 1));
	port->suspended = false;
	port->open = false;
	CHECK(!af_tx_port_lives(&rig.tx, 1));
	port->open = true;
	port->p.attached = false;
	CHECK(!af_tx_port_lives(&rig.tx, 1));
	end(s);
}

static void
without_shares_every_port_takes_what_it_can(void)
{
	struct af_tx_slice *s = begin(1, one);

	s->taken[0] = s->nbytes;
	for (uint32_t p = 0; p < 3; p++) {
		CHECK(af_dispatch_allows(&rig.tx, s, p, rig.now));
		CHECK(af_dispatch_cursor(&rig.tx, s, p, rig.now) == &s->cursor);
	}
	end(s);
}

static void
a_port_that_has_its_share_waits_for_two_others(void)
{
	struct af_tx_slice *s = begin(1, one);

	s->dispatch.by_share = true;
	for (uint32_t p = 0; p < 3; p++)
		s->dispatch.share_bytes[p] = 300000;
	s->taken[0] = 300000;
	s->taken[1] = s->taken[2] = 200000;
	CHECK(!af_dispatch_allows(&rig.tx, s, 0, rig.now));
	CHECK(!af_dispatch_cursor(&rig.tx, s, 0, rig.now));
	CHECK(af_dispatch_allows(&rig.tx, s, 1, rig.now) && af_dispatch_allows(&rig.tx, s, 2, rig.now));
	s->taken[1] = 300000; /* one holder is left: its rest is everybody's */
	CHECK(af_dispatch_allows(&rig.tx, s, 0, rig.now) && af_dispatch_allows(&rig.tx, s, 1, rig.now));
	end(s);
}

static void
a_dead_or_crawling_port_strands_no_share(void)
{
	struct af_tx_slice *s = begin(1, one);

	s->dispatch.by_share = true;
	for (uint32_t p = 0; p < 3; p++)
		s->dispatch.share_bytes[p] = 320000;
	s->taken[0] = 320000;
	s->taken[1] = s->taken[2] = 200000;
	rig.tx.ports[1].suspended = true;
	CHECK(af_dispatch_allows(&rig.tx, s, 0, rig.now));
	rig.tx.ports[1].suspended = false;
	CHECK(!af_dispatch_allows(&rig.tx, s, 0, rig.now));
	s->taken[1] = 320000 / AF_CRAWLING - 1;
	CHECK(!af_dispatch_holds(&rig.tx, s, 1) && af_dispatch_allows(&rig.tx, s, 0, rig.now));
	s->taken[1] = 320000 / AF_CRAWLING;
	CHECK(af_dispatch_holds(&rig.tx, s, 1) && !af_dispatch_allows(&rig.tx, s, 0, rig.now));
	end(s);
}

static void
the_shortest_queue_goes_first(void)
{
	struct af_tx_slice *s = begin(1, one);

	s->dispatch.shortest = true;
	rig.tx.ports[0].pn.in_flight = 20;
	rig.tx.ports[1].pn.in_flight = 20 - AF_SHORTEST_SLACK;
	rig.tx.ports[2].pn.in_flight = 20;
	CHECK(af_dispatch_allows(&rig.tx, s, 0, rig.now));
	rig.tx.ports[1].pn.in_flight--;
	CHECK(!af_dispatch_allows(&rig.tx, s, 0, rig.now));
	CHECK(af_dispatch_allows(&rig.tx, s, 1, rig.now));
	rig.tx.ports[1].suspended = true; /* it could not take it */
	CHECK(af_dispatch_allows(&rig.tx, s, 0, rig.now));
	rig.tx.ports[1].suspended = false;
	s->dispatch.ports = 1u << 0 | 1u << 2; /* nor may it */
	CHECK(af_dispatch_allows(&rig.tx, s, 0, rig.now));
	end(s);
}

static void
of_whole_elements_each_port_has_one_in_hand(void)
{
	static const uint64_t sizes[] = {10000, 20000, 30000};
	struct af_tx_slice *s = begin(3, sizes);
	struct af_cursor *hands[3];

	s->dispatch.elements = true;
	for (uint32_t p = 0; p < 3; p++) {
		hands[p] = af_dispatch_cursor(&rig.tx, s, p, rig.now);
		CHECK(hands[p] && hands[p]->element == p && hands[p]->open);
		CHECK(af_dispatch_cursor(&rig.tx, s, p, rig.now) == hands[p]);
	}
	CHECK_EQUAL(hands[0]->after, 50000);
	CHECK_EQUAL(hands[2]->after, 0);
	hands[0]->open = false; /* port 0 is through: it helps where most is left */
	hands[2]->offset = 15000;
	CHECK(af_dispatch_cursor(&rig.tx, s, 0, rig.now) == hands[1]);
	hands[1]->offset = 10000;
	CHECK(af_dispatch_cursor(&rig.tx, s, 0, rig.now) == hands[2]);
	end(s);
}

static void
what_a_dead_port_had_in_hand_is_taken_over(void)
{
	static const uint64_t sizes[] = {10000, 20000, 30000};
	struct af_tx_slice *s = begin(3, sizes);
	struct af_cursor *mine;

	s->dispatch.elements = true;
	af_dispatch_cursor(&rig.tx, s, 0, rig.now)->offset = 2920;
	rig.tx.ports[0].suspended = true;
	mine = af_dispatch_cursor(&rig.tx, s, 2, rig.now);
	CHECK(mine == &s->hands[2] && mine->element == 0 && mine->offset == 2920);
	CHECK(!s->hands[0].open);
	end(s);
}

/* Cut all of a slice; ports take turns at random. Returns its digest. */
static uint32_t
cut_all(struct af_tx_slice *s)
{
	for (uint32_t left = s->nb_data; left; left--) {
		uint32_t p = check_random(3), e, next;
		struct af_cursor *at = af_dispatch_cursor(&rig.tx, s, p, rig.now);
		uint64_t nbytes = 0;
		uint32_t crc = 0;

		CHECK(at);
		e = next = at->element;
		if (af_dispatch_is_element(s, e)) {
			nbytes = s->elements[e].nbytes - at->offset;
			nbytes = nbytes < s->payload_bytes ? nbytes : s->payload_bytes;
			crc = af_crc32c(0, s->elements[e].ptr + at->offset, nbytes);
			next += at->offset + nbytes == s->elements[e].nbytes;
		} else {
			for (; next < s->nb_elements && s->first_chunk[next] == s->first_chunk[e]; next++) {
				crc = af_crc32c(crc, s->elements[next].ptr, s->elements[next].nbytes);
				nbytes += s->elements[next].nbytes;
			}
		}
		af_dispatch_advance(&rig.tx, s, at, next, (uint32_t)nbytes, crc);
	}
	return s->digest;
}

static void
the_digest_is_that_of_all_bytes_in_any_order(void)
{
	static const uint64_t sizes[] = {5000, 100, 200, 0, 9000, 4000, 1460, 1, 1461, 2920, 700};

	for (int what = 0; what < 20; what++) {
		struct af_tx_slice *s = begin(11, sizes);
		uint32_t wanted = 0;

		for (uint32_t e = 0; e < s->nb_elements; e++)
			wanted = af_crc32c(wanted, s->elements[e].ptr, s->elements[e].nbytes);
		s->dispatch.elements = what % 2;
		if (what % 4 > 1)
			af_crc_shift_of(&rig.tx.full, RIG_PAYLOAD, af_crc_power(RIG_PAYLOAD));
		CHECK_EQUAL(cut_all(s), wanted);
		end(s);
	}
}

CASES(CASE(a_port_lives_while_it_is_attached_open_and_not_suspended), CASE(without_shares_every_port_takes_what_it_can),
      CASE(a_port_that_has_its_share_waits_for_two_others), CASE(a_dead_or_crawling_port_strands_no_share),
      CASE(the_shortest_queue_goes_first), CASE(of_whole_elements_each_port_has_one_in_hand),
      CASE(what_a_dead_port_had_in_hand_is_taken_over), CASE(the_digest_is_that_of_all_bytes_in_any_order))
