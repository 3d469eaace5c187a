/* A limit on the CPU time of a loop, as a token bucket. Time refills it, CPU time empties it, and a loop in debt rests.
 * The bucket is small, so that rests are frequent and short. */
#ifndef AIFLOW_CPU_BUDGET_H
#define AIFLOW_CPU_BUDGET_H

#include "aiflow/rt/handoff.h"

#define AF_CPU_BUDGET_LOOK_NS 100000ull /* between two readings of the thread's CPU clock */
#define AF_CPU_BUDGET_SAVED_NS 2000000.0 /* CPU time: size of the bucket */
#define AF_CPU_BUDGET_REST_MOST_NS 20000000ull /* longest rest */

struct af_cpu_budget {
	double cores; /* control: w before the loop runs; 0: no limit */
	double saved_ns; /* driving thread: rw; CPU time in the bucket, negative: debt */
	uint64_t wall_ns; /* driving thread: rw; the newest reading of the monotonic clock */
	uint64_t cpu_ns; /* … and of the thread's CPU clock */
	uint64_t rests; /* driving thread: rw, tests: ro; how often it rested */
};

/* This thread begins to drive. */
static inline void
af_cpu_budget_begin(struct af_cpu_budget *budget)
{
	if (budget->cores > 0)
		budget->cpu_ns = af_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* This thread stops driving, and pays for the time since the newest reading. */
static inline void
af_cpu_budget_end(struct af_cpu_budget *budget)
{
	if (budget->cores > 0)
		budget->saved_ns -= (double)(af_clock_ns(CLOCK_THREAD_CPUTIME_ID) - budget->cpu_ns);
}

/* How long to rest now; 0: not at all. */
static inline uint64_t
af_cpu_budget_rest(struct af_cpu_budget *budget, uint64_t now)
{
	uint64_t cpu, ns;

	if (now < budget->wall_ns + AF_CPU_BUDGET_LOOK_NS)
		return 0;
	cpu = af_clock_ns(CLOCK_THREAD_CPUTIME_ID);
	budget->saved_ns += budget->cores * (double)(now - budget->wall_ns) - (double)(cpu - budget->cpu_ns);
	budget->wall_ns = now;
	budget->cpu_ns = cpu;
	if (budget->saved_ns > AF_CPU_BUDGET_SAVED_NS)
		budget->saved_ns = AF_CPU_BUDGET_SAVED_NS;
	if (budget->saved_ns >= 0)
		return 0;
	budget->rests++;
	ns = (uint64_t)(-budget->saved_ns / budget->cores) + 1;
	return ns < AF_CPU_BUDGET_REST_MOST_NS ? ns : AF_CPU_BUDGET_REST_MOST_NS;
}

#endif
