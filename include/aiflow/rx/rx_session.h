/* One frame of a session, step by step: may it pass, what does it say, and what does its path learn from it? */
#ifndef AIFLOW_RX_SESSION_H
#define AIFLOW_RX_SESSION_H

#include "aiflow/rx/admission.h"
#include "aiflow/rx/credit_share.h"
#include "aiflow/rx/reassembly.h"
#include "aiflow/rx/rx_lifetime.h"
#include "aiflow/rx/rx_state.h"

/* Feedback for this path goes where its newest frame came from. */
static inline void
af_rx_learn_path(struct af_rx *rx, struct af_rx_session *session, struct af_rx_path *path, const struct af_rx_in *in)
{
	const struct af_frame *f = in->frame;

	if (path->known && path->port == in->port && !memcmp(path->mac, f->src, 6))
		return;
	if (path->known && rx->ports[path->port].nb_paths)
		rx->ports[path->port].nb_paths--;
	path->known = true;
	if (session->nb_paths <= f->path)
		session->nb_paths = f->path + 1u;
	path->port = (uint8_t)in->port;
	memcpy(path->mac, f->src, 6);
	rx->ports[in->port].nb_paths++;
	session->ports |= 1u << in->port;
}

static inline enum af_drop
af_rx_check_number(struct af_rx_path *path, uint64_t number)
{
	if (number > path->pn.next + AF_PKTNUM_JUMP)
		return AF_DROP_NUMBER;
	if (af_rx_pktnum_seen(&path->pn, number)) {
		path->news++; /* feedback must have been lost: it is due again */
		return AF_DROP_REPLAY;
	}
	return AF_OK;
}

/* Every fresh BYE is answered, because the answer to an earlier one may have been lost. */
static inline enum af_drop
af_rx_on_bye(struct af_rx *rx, struct af_rx_session *session, struct af_rx_path *path, const struct af_rx_in *in)
{
	enum af_drop drop =
		in->frame->element == AF_BYE_SENDER ? af_rx_check_number(path, in->frame->number) : AF_DROP_KIND;

	if (drop != AF_OK)
		return drop;
	af_rx_pktnum_take(&path->pn, in->frame->number);
	session->heard_ns = in->now;
	af_rx_learn_path(rx, session, path, in);
	path->bye_due = true; /* answered on this path: the others may be dead */
	af_rx_end_session(rx, session);
	return AF_OK;
}

/* The sender of a silenced session lives, and must be told what became of its slices. */
static inline enum af_drop
af_rx_on_silenced(struct af_rx *rx, struct af_rx_session *session, struct af_rx_path *path, const struct af_rx_in *in)
{
	if (session->confirmed != session->done)
		session->heard_ns = in->now; /* the user still owes a verdict, so the session stays */
	af_rx_learn_path(rx, session, path, in);
	path->urgent = true;
	return AF_DROP_SESSION;
}

static inline enum af_drop
af_rx_dispatch(struct af_rx *rx, struct af_rx_session *session, struct af_rx_path *path, struct af_rx_in *in,
	       const struct af_rx_target *target)
{
	switch (in->frame->kind) {
	case AF_DATA:
	case AF_PACKED:
	case AF_PLACED:
	case AF_PLACED_PACK:
		return af_rx_on_data(rx, session, in, target);
	case AF_MANIFEST:
		return af_rx_on_manifest(rx, session, in->frame, in->now);
	case AF_CLOSE:
		return af_rx_on_close(rx, session, in->frame, in->now);
	case AF_VOID:
		return af_rx_on_void(rx, session, in->frame, in->now);
	case AF_PROBE:
		path->urgent = true;
		return AF_OK;
	default:
		return AF_DROP_KIND;
	}
}

/* The frame is accepted: feedback acknowledges its number, and the port's credit learns from its delay. */
static inline void
af_rx_accept(struct af_rx *rx, struct af_rx_session *session, struct af_rx_path *path, const struct af_rx_in *in)
{
	const struct af_frame *f = in->frame;
	struct af_rx_port *port = &rx->ports[in->port];
	uint64_t now = in->now, missing = f->number > path->pn.next ? f->number - path->pn.next : 0;
	bool was_idle;

	session->heard_ns = now;
	if (!session->spoke) {
		session->spoke = true;
		rx->nb_seen++;
	}
	af_rx_learn_path(rx, session, path, in);
	port->arrived++;
	port->sent += f->number >= path->pn.next ? missing + 1 : 0;
	if (af_rx_pktnum_take(&path->pn, f->number) && now - path->feedback_ns > AF_FEEDBACK_HOLE_NS)
		path->urgent = true;
	path->news++;
	path->frames++;
	path->bytes += f->frame_bytes;
	path->echo_ns = f->timestamp_ns;
	was_idle = now - path->heard_ns >= AF_PATH_IDLE_NS;
	path->heard_ns = now;
	af_credit_share_heard(rx, path, in, was_idle, missing);
}

static inline enum af_drop
af_rx_on_session(struct af_rx *rx, struct af_rx_session *session, struct af_rx_in *in,
		 const struct af_rx_target *target)
{
	const struct af_frame *f = in->frame;
	struct af_rx_path *path = &session->paths[f->path % AF_MAX_PORTS];
	enum af_drop drop;

	if (!af_rx_knows(session, f->src))
		return AF_DROP_SRC_MAC;
	if (f->path >= AF_MAX_PORTS)
		return AF_DROP_PATH;
	session->last_port = in->port;
	if (f->kind == AF_BYE)
		return af_rx_on_bye(rx, session, path, in);
	if (session->silenced)
		return af_rx_on_silenced(rx, session, path, in);
	if (session->closed)
		return AF_DROP_SESSION; /* its BYE was faster */
	drop = af_rx_check_number(path, f->number);
	if (drop != AF_OK)
		return drop;
	drop = af_rx_dispatch(rx, session, path, in, target);
	if (drop != AF_OK && drop != AF_DROP_DUPLICATE && drop != AF_DROP_CONFLICT)
		return drop; /* not acknowledged, so that its sender retransmits */
	af_rx_accept(rx, session, path, in);
	return drop;
}

#endif
