/* Lent memory between loops: two threads begin to refer to it at once, and no reference is lost.
 *
 * A lost reference means that memory is given back while a card still reads it. The counts are those of DPDK.
 */
#include <rte_mbuf.h>

#include <pthread.h>
#include <sched.h>

#include "aiflow/rt/agent.h"

#include "check.h"

enum { ROUNDS = 100000, FRAMES = 64 };

static struct rte_mbuf_ext_shared_info lent;
static _Atomic uint32_t arrived[2];

/* Both threads leave at once. */
static void
meet(uint32_t me, uint32_t turn)
{
	arrived[me] = turn;
	for (uint32_t spins = 0; arrived[1 - me] < turn; spins++)
		if (spins > 1000) /* the threads share a core */
			sched_yield();
}

static void *
loop(void *argument)
{
	uint32_t me = argument != NULL;

	for (uint32_t round = 0; round < ROUNDS; round++) {
		meet(me, 3 * round + 1);
		for (int i = 0; i < FRAMES; i++)
			rte_mbuf_ext_refcnt_update(&lent, 1);
		meet(me, 3 * round + 2);
		CHECK_EQUAL(rte_mbuf_ext_refcnt_read(&lent), AF_LENT_AT_REST + 2 * FRAMES);
		meet(me, 3 * round + 3);
		for (int i = 0; i < FRAMES; i++)
			CHECK(rte_mbuf_ext_refcnt_update(&lent, -1) >= AF_LENT_AT_REST);
	}
	return NULL;
}

int
main(void)
{
	pthread_t threads[2];

	rte_mbuf_ext_refcnt_set(&lent, AF_LENT_AT_REST);
	for (uint32_t i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, loop, i ? &lent : NULL);
	for (uint32_t i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQUAL(rte_mbuf_ext_refcnt_read(&lent), AF_LENT_AT_REST);
	printf("{\"rounds\": %d}\n", ROUNDS);
	return 0;
}
