/* A receiver under test whose sender is played by the test: sessions and slices put in their places. */
#ifndef TESTS_RIG_RX_H
#define TESTS_RIG_RX_H

#include "rig.h"

static struct rig rig;
static struct af_rx_session *session;
static uint8_t rig_frame[RIG_FRAME];

/* One session, of the sender with this address. */
static inline void
begin(void)
{
	static const uint8_t mac[6] = {2, 0, 0, 0, 1, 0};
	char name[AF_NAME_BYTES] = "source";

	rig_begin(&rig, 1, 1 << 20);
	session = af_rx_open_session(&rig.rx, 7ull << AF_LIFE_BITS, 77, name, rig.now);
	CHECK(session);
	memcpy(session->macs[session->nb_macs++], mac, 6);
}

/* A slice of one inlined element stands in its slot, in this state. */
static inline struct af_rx_slot *
put(uint32_t id, enum af_rx_state state)
{
	struct af_rx_slot *slot = &session->slots[id % AF_RX_SLOTS];
	struct af_rx_slice *s = calloc(1, sizeof *s);

	s->id = id;
	s->inlined = true;
	s->session = session;
	s->arena = rig.rx.arena;
	s->nbytes = 10;
	s->nb_elements = 1;
	*slot = (struct af_rx_slot){.id = id, .state = (uint8_t)state, .slice = s};
	return slot;
}

/* The same of one that flows, and whose sender may write to its block. */
static inline struct af_rx_slot *
put_placed(uint32_t id)
{
	struct af_rx_slot *slot = put(id, AF_RX_FLOWING);

	session->writer = RIG_WRITER;
	slot->slice->inlined = false;
	slot->slice->has_place = true;
	slot->slice->block = af_arena_take(&rig.arena, 100000, 100000);
	CHECK(slot->slice->block);
	CHECK_EQUAL(af_arena_fill(&rig.arena, slot->slice->block, 1 << 20), AF_FILL_DONE);
	slot->slice->place = slot->slice->block->offset;
	rig.rx.flowing++;
	return slot;
}

/* The next frame of the receiver's first port; false when it has none. */
static inline bool
said(struct af_frame *f)
{
	uint32_t size = af_rx_next_frame(&rig.rx, 0, rig.now, NULL, rig_frame);

	if (!size)
		return false;
	CHECK(size <= RIG_FRAME);
	CHECK_EQUAL(af_wire_parse(rig_frame, size, rig_frame, RIG_FRAME, f), AF_OK);
	return true;
}

static inline struct af_rx_session *
opened(uint64_t instance, uint32_t life)
{
	char name[AF_NAME_BYTES] = "source";

	return af_rx_open_session(&rig.rx, instance << AF_LIFE_BITS | life, 500 + life, name, rig.now);
}

#endif
