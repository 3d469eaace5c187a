/* pktnum.h: packet numbers of one path, at both ends. */
#include "aiflow/path/pktnum.h"

#include "check.h"

/* A window as the definition has it: every number that was ever taken. */
#define MODEL_NUMBERS 20000u
static bool taken[MODEL_NUMBERS];

static void
agrees_with_the_set_of_numbers_in_any_order(void)
{
	struct af_rx_pktnum w = {0};
	uint64_t next = 0;

	memset(taken, 0, sizeof taken);
	for (int step = 0; step < 60000; step++) {
		uint64_t base = next > 1200 ? next - 1200 : 0;
		uint64_t number = base + check_random((uint32_t)(next - base) + 100);
		bool old = number + AF_RX_BITS < next;

		if (number >= MODEL_NUMBERS)
			break;
		if (number < next) {
			CHECK_EQUAL(af_rx_pktnum_seen(&w, number), old || taken[number]);
		} else {
			CHECK(!af_rx_pktnum_seen(&w, number));
		}
		if (af_rx_pktnum_seen(&w, number))
			continue;
		CHECK_EQUAL(af_rx_pktnum_take(&w, number), number > next);
		taken[number] = true;
		next = number + 1 > next ? number + 1 : next;
		CHECK_EQUAL(w.next, next);
	}
	CHECK(next > 10000);
}

static void
a_report_shows_every_hole(void)
{
	struct af_rx_pktnum w = {0};
	uint64_t word;

	CHECK_EQUAL(af_rx_pktnum_words(&w), 0);
	for (uint64_t n = 0; n < 200; n++)
		if (n != 70 && n != 131)
			CHECK_EQUAL(af_rx_pktnum_take(&w, n), n == 71 || n == 132);
	CHECK_EQUAL(w.floor, 70);
	CHECK_EQUAL(af_rx_pktnum_words(&w), 3); /* [70, 200) */
	for (uint32_t k = 0; k < 3; k++) {
		word = af_rx_pktnum_word(&w, 3, k);
		for (uint64_t i = 0; i < 64; i++) {
			uint64_t number = 200 - 64 * (3 - k) + i;

			CHECK_EQUAL(word >> i & 1, number != 70 && number != 131);
		}
	}
	CHECK(!af_rx_pktnum_take(&w, 70));
	CHECK_EQUAL(w.floor, 131);
	CHECK(!af_rx_pktnum_take(&w, 131));
	CHECK_EQUAL(w.floor, 200);
	CHECK_EQUAL(af_rx_pktnum_words(&w), 0);
}

static void
numbers_below_zero_read_as_seen(void)
{
	struct af_rx_pktnum w = {0};

	af_rx_pktnum_take(&w, 2);
	CHECK_EQUAL(af_rx_pktnum_words(&w), 1);
	CHECK_EQUAL(af_rx_pktnum_word(&w, 1, 0), ~(3ull << 61)); /* 0 and 1 are missing, 2 is the newest */
}

static void
a_jump_beyond_the_bitmap_forgets_what_was_there(void)
{
	struct af_rx_pktnum w = {0};

	for (uint64_t n = 0; n < 100; n++)
		af_rx_pktnum_take(&w, n);
	CHECK(af_rx_pktnum_take(&w, 100 + AF_RX_BITS));
	CHECK_EQUAL(w.next, 101 + AF_RX_BITS);
	CHECK_EQUAL(w.floor, 101);
	for (uint64_t n = 101; n < 100 + AF_RX_BITS; n++)
		CHECK(!af_rx_pktnum_seen(&w, n));
	CHECK(af_rx_pktnum_seen(&w, 99)); /* too old to know */
	CHECK_EQUAL(af_rx_pktnum_words(&w), AF_RX_BITS / 64);
}

static void
the_bitmap_wraps_around_at_large_numbers(void)
{
	struct af_rx_pktnum w = {0};
	uint64_t first = (1ull << 47) - 5;

	w.next = w.floor = first;
	for (uint64_t n = first; n < first + 3 * AF_RX_BITS; n += 2)
		CHECK_EQUAL(af_rx_pktnum_take(&w, n), n > first);
	for (uint64_t n = w.next - AF_RX_BITS; n < w.next; n++)
		CHECK_EQUAL(af_rx_pktnum_seen(&w, n), n % 2 == first % 2);
}

static struct af_tx_pktnum tx;

static void
numbers_are_taken_once_and_in_order(void)
{
	af_tx_pktnum_reset(&tx, 10, 1000);
	for (uint64_t n = 1000; n < 1005; n++) {
		CHECK(af_tx_pktnum_has_room(&tx));
		CHECK_EQUAL(af_tx_pktnum_take(&tx, 7 * n, 3, (uint32_t)n, n == 1002), n);
	}
	CHECK_EQUAL(tx.next, 1005);
	CHECK_EQUAL(tx.in_flight, 4); /* a probe carries no chunk */
	CHECK_EQUAL(af_tx_sent(&tx, 1003)->sent_ns, 7021);
	CHECK_EQUAL(af_tx_sent(&tx, 1003)->chunk, 1003);
	CHECK_EQUAL(af_tx_sent(&tx, 1003)->slice, 3);
	CHECK_EQUAL(af_tx_sent(&tx, 1003)->state, AF_SENT_IN_FLIGHT);
	CHECK(af_tx_sent(&tx, 1002)->probe && !af_tx_sent(&tx, 1003)->probe);
	CHECK_EQUAL(tx.sent_ns, 7028);
}

static void
a_number_without_acknowledgement_is_never_in_flight(void)
{
	af_tx_pktnum_reset(&tx, 10, 1000);
	CHECK_EQUAL(af_tx_pktnum_take(&tx, 7, 1, 1, false), 1000);
	CHECK_EQUAL(af_tx_pktnum_take_unacked(&tx, 9), 1001);
	CHECK_EQUAL(tx.next, 1002);
	CHECK_EQUAL(tx.in_flight, 1);
	CHECK_EQUAL(tx.sent_ns, 7); /* no probe waits for it */
	af_tx_pktnum_settle(&tx);
	CHECK_EQUAL(tx.judged, 1000);
	af_tx_sent(&tx, 1000)->state = AF_SENT_ACKED;
	af_tx_pktnum_settle(&tx);
	CHECK_EQUAL(tx.judged, 1002);
}

static void
room_ends_at_the_limit_and_at_the_ramp(void)
{
	af_tx_pktnum_reset(&tx, 4, 0);
	for (int i = 0; i < 4; i++) {
		CHECK(af_tx_pktnum_has_room(&tx));
		af_tx_pktnum_take(&tx, 1, 1, 1, false);
	}
	CHECK(!af_tx_pktnum_has_room(&tx));
	tx.limit = 5;
	CHECK(af_tx_pktnum_has_room(&tx));
	tx.ramp = 4;
	CHECK(!af_tx_pktnum_has_room(&tx));
	tx.ramp = 5;
	CHECK(af_tx_pktnum_has_room(&tx));
	af_tx_pktnum_reset(&tx, 1u << 30, 0);
	CHECK_EQUAL(tx.limit, AF_MAX_WINDOW);
	CHECK_EQUAL(tx.reorder, AF_REORDER_FIRST);
}

static void
judged_moves_past_what_is_acknowledged_or_lost(void)
{
	af_tx_pktnum_reset(&tx, 100, 0);
	for (int i = 0; i < 6; i++)
		af_tx_pktnum_take(&tx, 1, 1, 1, false);
	af_tx_sent(&tx, 1)->state = AF_SENT_ACKED;
	af_tx_pktnum_settle(&tx);
	CHECK_EQUAL(tx.judged, 0);
	af_tx_sent(&tx, 0)->state = AF_SENT_LOST;
	af_tx_pktnum_settle(&tx);
	CHECK_EQUAL(tx.judged, 2);
	for (uint64_t n = 2; n < 6; n++)
		af_tx_sent(&tx, n)->state = AF_SENT_ACKED;
	af_tx_pktnum_settle(&tx);
	CHECK_EQUAL(tx.judged, 6); /* never past `next` */
}

static void
the_ring_is_full_before_a_number_is_overwritten(void)
{
	uint64_t first = (1ull << 32) - 7; /* crosses 32 bits */

	af_tx_pktnum_reset(&tx, AF_MAX_WINDOW, first);
	for (uint32_t i = 0; i < AF_TX_RING - 1; i++) {
		CHECK(!af_tx_pktnum_is_full(&tx));
		CHECK_EQUAL(af_tx_pktnum_take(&tx, i, 1, i, true), first + i);
	}
	CHECK(af_tx_pktnum_is_full(&tx));
	CHECK(!af_tx_pktnum_has_room(&tx)); /* though nothing but probes is in flight */
	for (uint32_t i = 0; i < AF_TX_RING - 1; i++)
		CHECK_EQUAL(af_tx_sent(&tx, first + i)->chunk, i);
	af_tx_sent(&tx, first)->state = AF_SENT_ACKED;
	af_tx_pktnum_settle(&tx);
	CHECK(!af_tx_pktnum_is_full(&tx));
}

CASES(CASE(agrees_with_the_set_of_numbers_in_any_order), CASE(a_report_shows_every_hole),
      CASE(numbers_below_zero_read_as_seen), CASE(a_jump_beyond_the_bitmap_forgets_what_was_there),
      CASE(the_bitmap_wraps_around_at_large_numbers), CASE(numbers_are_taken_once_and_in_order),
      CASE(a_number_without_acknowledgement_is_never_in_flight), CASE(room_ends_at_the_limit_and_at_the_ramp),
      CASE(judged_moves_past_what_is_acknowledged_or_lost), CASE(the_ring_is_full_before_a_number_is_overwritten))
