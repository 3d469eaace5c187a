/* Agents on shared ports: which of them gets a frame that arrived, and which sends the next one.
 *
 *   frame of kind                                            goes to
 *   HELLO without a number (a question)                      every receiver of the port
 *   HELLO with a number, GRANT, FEEDBACK, BYE of a receiver  the sender that gave its peer this number
 *   all others                                               the receiver that gave its peer this number
 *
 * MACs tell no agents apart: those of a port share its MAC. A frame with an unknown number goes to the first agent of
 * that role, or of the port, which counts the drop. A sender's question is not for the receivers beside it, unless it
 * names one.
 *
 * A port asks its agents in turn, frame by frame. Where several send, they share the port's window and its pacing.
 */
#ifndef AIFLOW_DEMUX_H
#define AIFLOW_DEMUX_H

#include "aiflow/rt/agent.h"
#include "aiflow/wire/hello.h"

#define AF_MOST_AGENTS 64u

/* An agent on a port. control: w while the loop is parked, dataplane: ro */
struct af_user {
	const struct af_agent *agent;
	uint32_t port; /* its own number of the port */
	void *adopt;   /* pool that its frames move into before it gets them; NULL: they stay in the port's */
};

/* A port, and the agents on it. */
struct af_line {
	uint32_t nb, nb_senders, nb_adopting; /* control: w while the loop is parked */
	struct af_user users[AF_MOST_AGENTS];
	uint32_t turn;   /* dataplane: rw; the user that is asked first */
	uint64_t due_ns; /* dataplane: rw; of the next frame, where several senders pace */
};

struct af_demux {
	uint32_t nb; /* control: w while the loop is parked */
	const struct af_agent *agents[AF_MOST_AGENTS];
	struct af_line lines[AF_MAX_PORTS];
};

/* ---- control plane, while the loop is parked ---- */

/* False when there is no room for another agent. */
static inline bool
af_demux_add(struct af_demux *d, const struct af_agent *agent)
{
	if (d->nb == AF_MOST_AGENTS)
		return false;
	d->agents[d->nb++] = agent;
	return true;
}

static inline void
af_demux_unplug(struct af_demux *d, uint32_t p, const struct af_agent *agent)
{
	struct af_line *line = &d->lines[p];

	for (uint32_t i = 0; i < line->nb; i++) {
		if (line->users[i].agent != agent)
			continue;
		line->nb_senders -= agent->role == AF_SENDS;
		line->nb_adopting -= line->users[i].adopt != NULL;
		line->nb--;
		memmove(&line->users[i], &line->users[i + 1], (line->nb - i) * sizeof line->users[0]);
		line->turn = 0;
		return;
	}
}

static inline void
af_demux_remove(struct af_demux *d, const struct af_agent *agent)
{
	for (uint32_t p = 0; p < AF_MAX_PORTS; p++)
		af_demux_unplug(d, p, agent);
	for (uint32_t i = 0; i < d->nb; i++)
		if (d->agents[i] == agent) {
			d->nb--;
			memmove(&d->agents[i], &d->agents[i + 1], (d->nb - i) * sizeof d->agents[0]);
			return;
		}
}

/* The agent uses port p from now on, and calls it `port`. */
static inline void
af_demux_plug(struct af_demux *d, uint32_t p, const struct af_agent *agent, uint32_t port, void *adopt)
{
	struct af_line *line = &d->lines[p];

	line->users[line->nb++] = (struct af_user){.agent = agent, .port = port, .adopt = adopt};
	line->nb_senders += agent->role == AF_SENDS;
	line->nb_adopting += adopt != NULL;
}

/* ---- frames in ---- */

static inline bool
af_demux_is_question(const uint8_t *frame, uint32_t len)
{
	struct af_header h;

	if (len < AF_HEADER)
		return false;
	memcpy(&h, frame, sizeof h);
	return (h.frame_id & 15) == AF_HELLO && !h.session;
}

/* The first user of a role that owns the number, else the first of that role, else the first. */
static inline const struct af_user *
af_demux_owner(const struct af_line *line, enum af_role role, uint32_t number)
{
	const struct af_user *first = NULL;

	for (uint32_t i = 0; i < line->nb; i++) {
		const struct af_user *user = &line->users[i];

		if (user->agent->role != role)
			continue;
		if (user->agent->owns(user->agent->state, number))
			return user;
		first = first ? first : user;
	}
	return first ? first : &line->users[0];
}

/* The user that a frame is for. A line has at least one user. */
static inline const struct af_user *
af_demux_find(const struct af_line *line, const uint8_t *frame, uint32_t len)
{
	struct af_header h;
	bool to_sender;

	if (line->nb == 1 || len < AF_HEADER)
		return &line->users[0];
	memcpy(&h, frame, sizeof h);
	switch (h.frame_id & 15) {
	case AF_HELLO:
	case AF_GRANT:
	case AF_FEEDBACK:
		to_sender = true;
		break;
	case AF_BYE:
		to_sender = AF_BE32(h.element) == AF_BYE_RECEIVER;
		break;
	default:
		to_sender = false;
	}
	return af_demux_owner(line, to_sender ? AF_SENDS : AF_RECEIVES, AF_BE32(h.session));
}

/* Does a question come from a sender of this demux, and name no receiver? */
static inline bool
af_demux_is_own(const struct af_demux *d, const uint8_t *frame, uint32_t len)
{
	struct af_hello h;

	if (len < AF_HEADER + sizeof h)
		return false;
	memcpy(&h, frame + AF_HEADER, sizeof h);
	for (uint32_t i = 0; i < d->nb && !h.to_len; i++)
		if (d->agents[i]->role == AF_SENDS &&
		    d->agents[i]->instance >> AF_LIFE_BITS == AF_BE64(h.sender) >> AF_LIFE_BITS)
			return true;
	return false;
}

/* A question goes to every receiver of the port. */
static inline void
af_demux_ask(struct af_demux *d, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len)
{
	struct af_line *line = &d->lines[p];

	if (af_demux_is_own(d, frame, len))
		return;
	for (uint32_t i = 0; i < line->nb; i++) {
		const struct af_user *user = &line->users[i];

		if (user->agent->role == AF_RECEIVES || line->nb == line->nb_senders)
			user->agent->on_frame(user->agent->state, user->port, now, frame, len, NULL);
	}
}

/* A frame arrived on port p: true means that an agent keeps it. */
static inline bool
af_demux_on_frame(struct af_demux *d, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len, void *handle)
{
	const struct af_user *user;

	if (!d->lines[p].nb)
		return false;
	if (d->nb > 1 && af_demux_is_question(frame, len)) {
		af_demux_ask(d, p, now, frame, len);
		return false;
	}
	user = af_demux_find(&d->lines[p], frame, len);
	return user->agent->on_frame(user->agent->state, user->port, now, frame, len, handle);
}

/* ---- frames out ---- */

/* What several senders have on port p together. */
static inline struct af_load
af_demux_load(const struct af_line *line, uint32_t *sharers)
{
	struct af_load sum = {0};

	*sharers = 0;
	for (uint32_t i = 0; i < line->nb; i++) {
		const struct af_user *user = &line->users[i];
		struct af_load load;

		if (user->agent->role != AF_SENDS)
			continue;
		load = user->agent->load(user->agent->state, user->port);
		sum.window = load.window > sum.window ? load.window : sum.window;
		sum.in_flight += load.in_flight;
		*sharers += load.busy;
	}
	return sum;
}

/* Several senders: each may use an even part of the port's window, and no more than is free. */
static inline uint32_t
af_demux_shared(struct af_line *line, uint64_t now, uint8_t *frame, const struct af_span **tail)
{
	uint32_t sharers, part, left, size = 0;
	struct af_load all = af_demux_load(line, &sharers);

	part = sharers > 1 ? all.window / sharers : all.window;
	part = part ? part : 1;
	left = all.in_flight < all.window ? all.window - all.in_flight : 0;
	for (uint32_t i = 0; i < line->nb && !size; i++) {
		uint32_t whose = (line->turn + i) % line->nb;
		const struct af_user *user = &line->users[whose];
		struct af_budget budget = {.due_ns = line->due_ns};

		if (user->agent->role == AF_SENDS) {
			budget.frames = user->agent->load(user->agent->state, user->port).in_flight + left;
			budget.frames = budget.frames < part ? budget.frames : part;
		}
		size = user->agent->next_frame(user->agent->state, user->port, now, &budget, frame);
		if (size) {
			line->turn = (whose + 1) % line->nb;
			line->due_ns = budget.due_ns;
			*tail = user->agent->tail;
		}
	}
	return size;
}

/* Write the next frame for port p and return its size; 0: there is none. `*tail`: of the agent that wrote it. */
static inline uint32_t
af_demux_next_frame(struct af_demux *d, uint32_t p, uint64_t now, uint8_t *frame, const struct af_span **tail)
{
	struct af_line *line = &d->lines[p];
	uint32_t size = 0;

	if (line->nb_senders > 1)
		return af_demux_shared(line, now, frame, tail);
	for (uint32_t i = 0; i < line->nb && !size; i++) {
		uint32_t whose = line->nb > 1 ? (line->turn + i) % line->nb : 0;
		const struct af_user *user = &line->users[whose];

		size = user->agent->next_frame(user->agent->state, user->port, now, NULL, frame);
		if (size) {
			line->turn = whose + 1;
			*tail = user->agent->tail;
		}
	}
	return size;
}

/* ---- time ---- */

static inline bool
af_demux_tick(struct af_demux *d, uint64_t now)
{
	bool changed = false;

	for (uint32_t i = 0; i < d->nb; i++)
		changed |= d->agents[i]->tick(d->agents[i]->state, now);
	return changed;
}

/* When an agent has something to do although no frame arrives; AF_DUE_UNKNOWN when one of them cannot say. */
static inline uint64_t
af_demux_due(const struct af_demux *d, uint64_t now)
{
	uint64_t due = AF_DUE_NEVER;

	for (uint32_t i = 0; i < d->nb; i++) {
		if (!d->agents[i]->due)
			return AF_DUE_UNKNOWN;
		due = af_earlier(due, d->agents[i]->due(d->agents[i]->state, now));
	}
	for (uint32_t p = 0; p < AF_MAX_PORTS; p++)
		if (d->lines[p].nb_senders > 1 && d->lines[p].due_ns > now)
			due = af_earlier(due, d->lines[p].due_ns); /* its senders do not know when the port is free */
	return due;
}

#endif
