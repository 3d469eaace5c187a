/* A loop that may use only so much of the processor: it earns time as time passes, pays for what it uses, and rests
 * when it owes. What it may have saved up is little, so that it rests often and briefly. */
#ifndef AIFLOW_QUOTA_H
#define AIFLOW_QUOTA_H

#include "aiflow/rt/handoff.h"

#define AF_CPU_BUDGET_LOOK_NS 100000ull    /* between two looks at the thread's own clock */
#define AF_CPU_BUDGET_SAVED_NS 2000000.0   /* of processor time */
#define AF_CPU_BUDGET_REST_MOST_NS 20000000ull

struct af_cpu_budget {
	double cores;     /* control: w before the loop runs; 0: no limit */
	double saved_ns;  /* whoever drives: rw; what it may use now, negative: what it owes */
	uint64_t wall_ns; /* the newest look, on every clock and on the thread's */
	uint64_t cpu_ns;
	uint64_t rests;
};

/* Another thread drives from now on. */
static inline void
af_cpu_budget_begin(struct af_cpu_budget *budget)
{
	if (budget->cores > 0)
		budget->cpu_ns = af_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* Who drove stops: it pays for what it used since the newest look. */
static inline void
af_cpu_budget_end(struct af_cpu_budget *budget)
{
	if (budget->cores > 0)
		budget->saved_ns -= (double)(af_clock_ns(CLOCK_THREAD_CPUTIME_ID) - budget->cpu_ns);
}

/* How long to rest now; 0 for not at all. */
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
