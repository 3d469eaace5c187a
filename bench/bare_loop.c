/* The baseline of aiflow's overhead: a burst loop over one memif port with the same copies, and nothing else. It has no
 * checksum, window, feedback, manifest or monitor. memif loses no frames, so there are no retransmissions.
 *
 * Four copies: array → mbuf, memif's two, mbuf → array. Three if the sender is memif's zero-copy client: its mbufs are
 * the shared memory. Two if the receiver is the client and the sender passes its arrays as external buffers
 * (`by_reference`): memif copies once, and the receiver copies into the array.
 *
 * Loaded through ctypes by peers/bare.py, one port per process. */
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <rte_bus_vdev.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define BURST 32
#define MBUFS 3071
#define IDLE_TURNS 64
#define ETHERTYPE 0xB588 /* 0x88B5, big-endian */

/* The size of aiflow's headers, so that a frame has the same payload. */
struct header {
	uint8_t dst[6], src[6];
	uint16_t ethertype;
	uint32_t element;
	uint64_t offset;
	uint32_t nbytes;
	uint8_t rest[24];
} __attribute__((packed));

_Static_assert(sizeof(struct header) == 54, "aiflow's headers take 54 bytes");

static struct rte_mempool *pool, *references;
static struct rte_mbuf_ext_shared_info shared;
static uint32_t payload_bytes;
static bool by_reference;

static void
free_nothing(void *address, void *opaque)
{
	(void)address;
	(void)opaque;
}

/* Returns 0, or the number of the failed step. */
int
bare_open(int argc, char **argv, const char *devargs, uint32_t frame_bytes, uint16_t ring, bool references_arrays)
{
	struct rte_eth_conf conf;
	uint16_t room = RTE_PKTMBUF_HEADROOM + frame_bytes + 128;

	if (rte_eal_init(argc, argv) < 0)
		return 1;
	payload_bytes = frame_bytes - sizeof(struct header);
	by_reference = references_arrays;
	pool = rte_pktmbuf_pool_create("bare", MBUFS, 256, 0, room, SOCKET_ID_ANY);
	references =
		rte_pktmbuf_pool_create("references", 2 * MBUFS, 256, 0, RTE_PKTMBUF_HEADROOM + 128, SOCKET_ID_ANY);
	if (pool == NULL || references == NULL)
		return 2;
	if (rte_vdev_init("net_memif0", devargs) != 0)
		return 3;
	memset(&conf, 0, sizeof conf);
	if (rte_eth_dev_configure(0, 1, 1, &conf) || rte_eth_rx_queue_setup(0, 0, ring, 0, NULL, pool) ||
	    rte_eth_tx_queue_setup(0, 0, ring, 0, NULL) || rte_eth_dev_start(0))
		return 4;
	shared.free_cb = free_nothing;
	rte_mbuf_ext_refcnt_set(&shared, 1);
	return 0;
}

bool
bare_link_up(void)
{
	struct rte_eth_link link;

	return rte_eth_link_get_nowait(0, &link) == 0 && link.link_status;
}

static struct rte_mbuf *
frame_of(uint32_t element, const uint8_t *from, uint64_t offset, uint32_t nbytes)
{
	struct rte_mbuf *m, *body;
	struct header *header;

	while ((m = rte_pktmbuf_alloc(by_reference ? references : pool)) == NULL)
		;
	header = (struct header *)(void *)rte_pktmbuf_append(m, sizeof *header);
	memset(header, 0, sizeof *header);
	header->ethertype = ETHERTYPE;
	header->element = element;
	header->offset = offset;
	header->nbytes = nbytes;
	if (!by_reference) {
		memcpy(rte_pktmbuf_append(m, nbytes), from + offset, nbytes);
		return m;
	}
	while ((body = rte_pktmbuf_alloc(references)) == NULL)
		;
	rte_mbuf_ext_refcnt_update(&shared, 1);
	rte_pktmbuf_attach_extbuf(body, (void *)(uintptr_t)(from + offset), 0, nbytes, &shared);
	body->data_off = 0;
	body->data_len = body->pkt_len = nbytes;
	m->next = body;
	m->nb_segs = 2;
	m->pkt_len += nbytes;
	return m;
}

/* Another process may need the core, on a busy machine even the peer: yield after some idle turns. */
static void
idle(uint32_t *turns)
{
	if (++*turns % IDLE_TURNS == 0)
		sched_yield();
}

static void
send_all(struct rte_mbuf **pkts, uint16_t count)
{
	uint16_t sent = 0;
	uint32_t turns = 0;

	while (sent < count) {
		uint16_t taken = rte_eth_tx_burst(0, 0, pkts + sent, count - sent);

		if (taken == 0)
			idle(&turns);
		sent += taken;
	}
}

/* Send `count` elements. */
void
bare_send(const uint8_t *const *elements, const uint64_t *sizes, uint32_t count)
{
	struct rte_mbuf *pkts[BURST];
	uint16_t staged = 0;

	for (uint32_t i = 0; i < count; i++) {
		for (uint64_t offset = 0; offset < sizes[i]; offset += payload_bytes) {
			uint64_t left = sizes[i] - offset;

			pkts[staged++] = frame_of(i, elements[i], offset, left < payload_bytes ? left : payload_bytes);
			if (staged == BURST) {
				send_all(pkts, staged);
				staged = 0;
			}
		}
	}
	send_all(pkts, staged);
}

/* Receive elements until `nbytes` have come. */
void
bare_recv(uint8_t *const *elements, uint64_t nbytes)
{
	struct rte_mbuf *pkts[BURST];
	uint32_t turns = 0;

	while (nbytes) {
		uint16_t count = rte_eth_rx_burst(0, 0, pkts, BURST);

		for (uint16_t i = 0; i < count; i++) {
			const struct header *header = rte_pktmbuf_mtod(pkts[i], const struct header *);

			memcpy(elements[header->element] + header->offset, header + 1, header->nbytes);
			nbytes -= header->nbytes;
		}
		if (count)
			rte_pktmbuf_free_bulk(pkts, count);
		else
			idle(&turns);
	}
}

/* Send an element of `nbytes` and wait for one of this size: a round trip. */
void
bare_call(const uint8_t *request, uint8_t *reply, uint64_t nbytes)
{
	bare_send(&request, &nbytes, 1);
	bare_recv(&reply, nbytes);
}

/* Wait for `calls` elements of `nbytes`, one by one, and send each back. */
void
bare_answer(uint8_t *memory, uint64_t nbytes, uint32_t calls)
{
	const uint8_t *answer = memory;

	while (calls--) {
		bare_recv(&memory, nbytes);
		bare_send(&answer, &nbytes, 1);
	}
}
