/* The shares of a port's credit (credit.h) that its paths get. */
#ifndef AIFLOW_CREDIT_SHARE_H
#define AIFLOW_CREDIT_SHARE_H

#include "aiflow/rx/credit.h"
#include "aiflow/rx/rx_state.h"

static inline bool
af_credit_share_takes_part(const struct af_rx_path *path, uint32_t p, uint64_t now)
{
	return path->known && path->port == p && now - path->heard_ns < AF_PATH_IDLE_NS;
}

/* Give each path the same window, but no more than it can use. The others share the rest. */
static inline void
af_credit_share_divide(struct af_rx *rx, uint32_t p, uint64_t now)
{
	struct af_rx_port *port = &rx->ports[p];
	double left = port->credit.window, share = left;
	uint32_t paths = 0, rest;

	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t k = 0; k < AF_MAX_PORTS; k++)
			if (af_credit_share_takes_part(&rx->sessions[i]->paths[k], p, now)) {
				rx->sessions[i]->paths[k].granted = 0;
				paths++;
			}
	for (rest = paths; rest;) {
		uint32_t before = rest;

		share = left / rest;
		for (uint32_t i = 0; i < rx->nb_sessions; i++)
			for (uint32_t k = 0; k < AF_MAX_PORTS; k++) {
				struct af_rx_path *path = &rx->sessions[i]->paths[k];

				if (!af_credit_share_takes_part(path, p, now) || path->granted ||
				    path->credit.window > share)
					continue;
				path->granted = path->credit.window;
				left -= path->granted;
				rest--;
			}
		if (rest == before)
			break;
	}
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t k = 0; k < AF_MAX_PORTS; k++) {
			struct af_rx_path *path = &rx->sessions[i]->paths[k];

			if (af_credit_share_takes_part(path, p, now) && !path->granted)
				path->granted = share;
		}
	port->sharing = paths;
}

/* Keep the port's windows small for a while, and measure the least delays anew. */
static inline void
af_credit_share_drain(struct af_rx *rx, uint32_t p, uint64_t now)
{
	rx->ports[p].drain_ns = now + AF_DRAIN_NS;
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t k = 0; k < AF_MAX_PORTS; k++) {
			struct af_rx_path *path = &rx->sessions[i]->paths[k];

			if (path->known && path->port == p)
				path->delay.known = false; /* the next frames set the base */
		}
}

/* An interval of the port is over. */
static inline void
af_credit_share_step(struct af_rx *rx, uint32_t p, uint64_t now)
{
	struct af_rx_port *port = &rx->ports[p];
	uint64_t ns = now - port->step_ns;
	double least = -1;

	port->step_ns = now;
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t k = 0; k < AF_MAX_PORTS; k++) {
			struct af_rx_path *path = &rx->sessions[i]->paths[k];
			double standing = af_delay_standing(&path->delay);

			if (!path->known || path->port != p)
				continue;
			if (path->delay.any && path->credit.bytes) {
				if (least < 0 || standing < least)
					least = standing;
				if (now > port->drain_ns)
					af_credit_step(&path->credit, standing, ns, 2, port->p.rx_ring);
				if (now - path->delay.met_ns > AF_BASE_NS)
					path->delay.doubted = true;
			}
			path->delay.any = false;
			path->credit.frames = path->credit.bytes = 0;
			if (path->delay.doubted && now > port->drain_ns + AF_DRAIN_APART_NS) {
				path->delay.doubted = false;
				path->delay.met_ns = now;
				af_credit_share_drain(rx, p, now);
			}
		}
	if (now > port->drain_ns && least >= 0)
		af_credit_step(&port->credit, least, ns, 1, port->p.rx_ring);
	af_trial_step(&port->trial, &port->credit, port->sent, port->arrived, now);
	port->credit.frames = port->credit.bytes = 0;
	af_credit_share_divide(rx, p, now);
}

/* A numbered frame was accepted on this path. `was_idle`: the path was silent before. `missing`: packet numbers that
 * are newly missing. */
static inline void
af_credit_share_heard(struct af_rx *rx, struct af_rx_path *path, const struct af_rx_in *in, bool was_idle,
		      uint64_t missing)
{
	const struct af_frame *f = in->frame;
	uint32_t p = in->port;
	uint64_t now = in->now;
	struct af_rx_port *port = &rx->ports[p];

	if (port->p.point_to_point)
		return;
	if (!port->credit.window)
		port->credit.window = AF_FIRST_WINDOW;
	if (!path->credit.window)
		path->credit.window = port->credit.window;
	af_delay_note(&path->delay, (int64_t)(now + rx->clock_offset_ns - f->timestamp_ns), now);
	port->credit.frames++;
	port->credit.bytes += f->frame_bytes;
	path->credit.frames++;
	path->credit.bytes += f->frame_bytes;
	if (!path->granted && port->sharing)
		path->delay.doubted = true; /* the first delays of a new path may include the others' queue */
	if ((missing && af_trial_hole(&port->trial, &port->credit, port->sent - missing - 1, port->arrived - 1, now)) ||
	    was_idle || !path->granted)
		af_credit_share_divide(rx, p, now);
	if (now - port->step_ns >= AF_CREDIT_NS ||
	    (port->credit.frames >= AF_CREDIT_FRAMES && now - port->step_ns >= AF_CREDIT_SOON_NS))
		af_credit_share_step(rx, p, now);
}

/* The window that feedback grants. */
static inline uint32_t
af_credit_share_window(const struct af_rx *rx, const struct af_rx_path *path, uint64_t now)
{
	const struct af_rx_port *port = &rx->ports[path->port];
	uint32_t window = port->p.rx_ring / (port->nb_paths ? port->nb_paths : 1);

	if (!port->p.point_to_point) {
		window = (uint32_t)path->granted;
		if (now < port->drain_ns && window > AF_DRAIN_FRAMES)
			window = AF_DRAIN_FRAMES;
	}
	return window ? window : 1;
}

#endif
