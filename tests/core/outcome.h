/* What the runs of all seeds came to, as one JSON object. */
#ifndef TESTS_OUTCOME_H
#define TESTS_OUTCOME_H

#include "invariants.h"

static struct {
	uint64_t delivered, failed, nbytes, frames, again, spurious, probes, suspended, lives, renewals, sent,
		receivers, longest_ns, total_ns;
	uint64_t first, last, cut, muted, overtaken, by_kind[NB_FAULTS], overflowed, fewest_frames, mild;
	uint64_t hash;
	uint64_t ended_ns[MAX_SENDERS];
	int longest_seed, nb_senders;
} sum = {.fewest_frames = UINT64_MAX};

static const char *separator; /* before the next member */

static void
print_count(FILE *out, const char *key, uint64_t count)
{
	fprintf(out, "%s\"%s\": %" PRIu64, separator, key, count);
	separator = ", ";
}

static void
print_ms(FILE *out, const char *key, double ns)
{
	fprintf(out, "%s\"%s\": %.3f", separator, key, ns / 1e6);
}

static void
print_network(FILE *out)
{
	static const char *const names[NB_FAULTS] = {
		"dropped", "burst",  "down",  "damaged", "truncated",  "doubled",    "reordered", "delayed",
		"stalls",  "outage", "pause", "unplug",  "rx_restart", "tx_restart", "cancel",    "starved"};

	separator = "";
	print_count(out, "sent", sum.sent);
	print_count(out, "lost", sum.by_kind[DROP] + sum.by_kind[BURST]);
	print_count(out, "cut", sum.cut);
	print_count(out, "muted", sum.muted);
	print_count(out, "first", sum.first);
	print_count(out, "last", sum.last);
	print_count(out, "overtaken", sum.overtaken);
	print_count(out, "overflowed", sum.overflowed);
	for (int k = 0; k < NB_FAULTS; k++)
		print_count(out, names[k], sum.by_kind[k]);
}

static void
print_drops(FILE *out)
{
	separator = "";
	for (int i = 1; i < AF_NB_DROPS; i++) {
		char key[12];

		snprintf(key, sizeof key, "%d", i);
		if (rx_drops[i])
			print_count(out, key, rx_drops[i]);
	}
}

/* When each sender's last slice had ended, in the last world. */
static void
print_ended(FILE *out)
{
	fprintf(out, ", \"ended_ms\": [");
	for (int i = 0; i < sum.nb_senders; i++)
		fprintf(out, "%s%.3f", i ? ", " : "", (double)(sum.ended_ns[i] - START_NS) / 1e6);
	fprintf(out, "]");
}

static void
print_outcome(void)
{
	FILE *out = o.log ? stderr : stdout;

	fprintf(out, "{\"trace\": \"%016" PRIx64 "\"", sum.hash);
	separator = ", ";
	print_count(out, "seeds", (uint64_t)o.seeds);
	print_count(out, "senders", (uint64_t)sum.nb_senders);
	print_count(out, "delivered", sum.delivered);
	print_count(out, "failed", sum.failed);
	print_count(out, "nbytes", sum.nbytes);
	print_ms(out, "ms", (double)sum.longest_ns);
	print_count(out, "longest_seed", (uint64_t)sum.longest_seed);
	print_ms(out, "mean_ms", (double)sum.total_ns / o.seeds);
	print_count(out, "frames", sum.frames);
	print_count(out, "again", sum.again);
	print_count(out, "spurious", sum.spurious);
	print_count(out, "probes", sum.probes);
	print_count(out, "suspended", sum.suspended);
	print_count(out, "lives", sum.lives);
	print_count(out, "renewals", sum.renewals);
	print_count(out, "waited", waited);
	print_count(out, "receivers", sum.receivers);
	print_count(out, "fewest_frames", sum.fewest_frames);
	print_count(out, "mild", sum.mild);
	print_count(out, "most_in_flight", most_in_flight);
	print_count(out, "most_shared", most_shared);
	print_count(out, "placed", placing.writes);
	print_count(out, "placed_late", placing.fenced);
	print_count(out, "placed_too_late", placing.orphaned);
	print_count(out, "stuck", placing.stuck);
	print_count(out, "writers_gone", placing.gone);
	print_ended(out);
	fprintf(out, ", \"network\": {");
	print_network(out);
	fprintf(out, "}, \"drops\": {");
	print_drops(out);
	fprintf(out, "}}\n");
}

#endif
