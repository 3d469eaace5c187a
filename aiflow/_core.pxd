# The plain-C core (include/aiflow/*.h), as the data plane sees it. Declarations only; the headers say what they mean.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from aiflow._core_loans cimport af_borrowed, af_loan, af_loan_piece
from aiflow._core_memory cimport af_arena, af_block, af_into, af_offer


cdef extern from "aiflow/wire/frame.h" nogil:
    enum:
        AF_ETHERTYPE
        AF_HEADER
        AF_MIN_FRAME
        AF_MIN_PATH_FRAME
        AF_MAX_FRAME
        AF_MAX_PORTS
        AF_NAME_BYTES
        AF_NB_DROPS
        AF_NB_KINDS

    const char *af_kind_name(unsigned kind) noexcept  # "" for what is no kind; the first is 1
    const char *af_drop_name(unsigned drop) noexcept

    struct af_frame:
        uint8_t kind, end
        uint16_t path
        uint32_t element, seq, session, slice
        uint64_t number, timestamp_ns
        uint8_t src[6]
        const uint8_t *payload
        uint32_t nbytes, frame_bytes, header_crc, crc
        uint8_t *to

    int af_wire_parse(const uint8_t *frame, uint32_t len, const uint8_t *mac, uint32_t max_frame,
                      af_frame *out) noexcept
    uint32_t af_wire_seal(uint8_t *frame, const uint8_t *dst, const uint8_t *src, af_frame *f) noexcept


cdef extern from "aiflow/wire/crc32c.h" nogil:
    uint32_t af_crc32c(uint32_t crc, const void *buf, size_t nbytes) noexcept
    uint32_t af_crc32c_shift(uint32_t crc, uint64_t nbytes) noexcept


cdef extern from "aiflow/wire/manifest.h" nogil:
    struct af_manifest:
        uint32_t nb_runs

    struct af_extent:
        uint64_t nb_elements, nbytes, block_bytes

    bint af_manifest_measure(const uint8_t *bytes, uint64_t len, af_manifest *m, af_extent *out) noexcept


cdef extern from "aiflow/rt/agent.h" nogil:
    enum:
        AF_DUE_UNKNOWN
        AF_MBUF_OVERHEAD
        AF_REFER_ALL
        AF_REFER_NONE
        AF_REFER_OWNED
        AF_TAIL_LEAST

    struct af_span:
        const uint8_t *ptr
        uint64_t nbytes
        void *owner

    struct af_budget:
        pass

    struct af_load:
        pass

    enum af_role:
        AF_SENDS
        AF_RECEIVES

    struct af_agent:
        void *state
        af_role role
        uint64_t instance
        const af_span *tail
        bint (*on_frame)(void *state, uint32_t port, uint64_t now_ns, const uint8_t *frame, uint32_t len,
                         void *handle) noexcept nogil
        uint32_t (*next_frame)(void *state, uint32_t port, uint64_t now_ns, af_budget *budget,
                               uint8_t *frame) noexcept nogil
        bint (*tick)(void *state, uint64_t now_ns) noexcept nogil
        uint64_t (*due)(void *state, uint64_t now_ns) noexcept nogil
        bint (*owns)(const void *state, uint32_t number) noexcept nogil
        af_load (*load)(const void *state, uint32_t port) noexcept nogil

    struct af_shared:
        pass

    struct af_agent_port:
        bint attached, point_to_point, kick
        uint8_t by_reference
        uint8_t mac[6]
        uint16_t frame_size
        uint32_t rx_ring, tx_window, writer
        const af_shared *shared

    struct af_port_counters:
        uint64_t tx_frames, tx_bytes, rx_frames, rx_bytes, retransmits, lost


cdef extern from "aiflow/rt/demux.h" nogil:
    enum:
        AF_MOST_AGENTS

    struct af_user:
        const af_agent *agent
        uint32_t port
        void *adopt

    struct af_line:
        uint32_t nb, nb_adopting

    struct af_demux:
        uint32_t nb
        af_line lines[AF_MAX_PORTS]

    bint af_demux_add(af_demux *d, const af_agent *agent) noexcept
    void af_demux_remove(af_demux *d, const af_agent *agent) noexcept
    void af_demux_plug(af_demux *d, uint32_t p, const af_agent *agent, uint32_t port, void *adopt) noexcept
    void af_demux_unplug(af_demux *d, uint32_t p, const af_agent *agent) noexcept
    const af_user *af_demux_find(const af_line *line, const uint8_t *frame, uint32_t len) noexcept
    bint af_demux_on_frame(af_demux *d, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len,
                           void *handle) noexcept
    uint32_t af_demux_next_frame(af_demux *d, uint32_t p, uint64_t now, uint8_t *frame, const af_span **tail) noexcept
    bint af_demux_tick(af_demux *d, uint64_t now) noexcept
    uint64_t af_demux_due(const af_demux *d, uint64_t now) noexcept


cdef extern from "aiflow/rt/numbers.h" nogil:
    struct af_numbers:
        pass

    void af_numbers_init(af_numbers *numbers, const uint64_t *seed) noexcept


cdef extern from "aiflow/rt/handoff.h" nogil:
    enum:
        AF_WORKER, AF_POSTED, AF_CONTROL_WANTED, AF_CALLER_WAITS, AF_DOZES, AF_ARMED
        AF_NAP_FIRST_NS

    struct af_handoff:
        int wake_fd, event_fd
        uint64_t driven, generation

    struct af_nap:
        uint64_t driven, ns
        bint same

    int af_handoff_init(af_handoff *handoff) noexcept
    void af_handoff_free(af_handoff *handoff) noexcept
    uint32_t af_handoff_flag(af_handoff *handoff, uint32_t set, uint32_t clear) noexcept
    bint af_handoff_has(af_handoff *handoff, uint32_t flags) noexcept
    void af_handoff_post(af_handoff *handoff) noexcept
    bint af_handoff_take_posted(af_handoff *handoff) noexcept
    void af_handoff_wake(af_handoff *handoff) noexcept
    void af_handoff_notify(af_handoff *handoff) noexcept
    void af_handoff_tell(af_handoff *handoff) noexcept
    void af_handoff_wait(af_handoff *handoff, uint64_t seen, uint64_t ns) noexcept
    bint af_handoff_acquire(af_handoff *handoff) noexcept
    bint af_handoff_request(af_handoff *handoff) noexcept
    void af_handoff_release(af_handoff *handoff, bint work_left) noexcept
    bint af_handoff_sleeps(af_handoff *handoff) noexcept
    void af_handoff_woke(af_handoff *handoff) noexcept
    uint32_t af_handoff_enter(af_handoff *handoff, af_nap *nap) noexcept
    bint af_handoff_turns_to_control(af_handoff *handoff) noexcept
    void af_handoff_served(af_handoff *handoff) noexcept
    void af_handoff_leave(af_handoff *handoff, af_nap *nap) noexcept
    bint af_handoff_dozes(af_handoff *handoff) noexcept
    void af_handoff_rest(af_handoff *handoff, uint64_t ns) noexcept
    void af_handoff_drain_fd(int fd) noexcept
    uint64_t af_now_ns() noexcept


cdef extern from "aiflow/rt/wake_set.h" nogil:
    enum af_sleeper:
        AF_SLEEPER_WORKER, AF_SLEEPER_CALLER

    struct af_wake_set:
        uint32_t nb

    void af_wake_init(af_wake_set *set, int wake_fd) noexcept
    bint af_wake_add(af_wake_set *set, int fd) noexcept
    bint af_wake_remove(af_wake_set *set, int fd) noexcept
    bint af_wake_is_complete(const af_wake_set *set) noexcept
    bint af_wake_wait(af_wake_set *set, af_sleeper who, bint alone, uint64_t ns) noexcept
    bint af_wake_drain(af_wake_set *set, af_sleeper who) noexcept


cdef extern from "aiflow/rt/idle.h" nogil:
    enum:
        AF_SIGNALS_NS

    struct af_idle:
        uint64_t worked_ns, sleep_ns, shared_ns
        uint32_t spins, vain
        bint alone

    void af_idle_begin(af_idle *idle, uint64_t now) noexcept
    void af_idle_worked(af_idle *idle, uint64_t now, int work) noexcept
    void af_idle_spin() noexcept
    uint64_t af_idle_step(af_idle *idle, uint64_t now) noexcept
    uint64_t af_idle_sleep(af_idle *idle, uint64_t now, uint64_t backoff_ns, uint64_t due) noexcept
    unsigned long af_idle_exact_timers() noexcept
    void af_idle_timers_as(unsigned long slack_ns) noexcept


cdef extern from "aiflow/rt/cpu_budget.h" nogil:
    struct af_cpu_budget:
        double cores
        uint64_t rests

    void af_cpu_budget_begin(af_cpu_budget *budget) noexcept
    void af_cpu_budget_end(af_cpu_budget *budget) noexcept
    uint64_t af_cpu_budget_rest(af_cpu_budget *budget, uint64_t now) noexcept


cdef extern from "aiflow/rt/fault_line.h" nogil:
    enum:
        AF_NB_FAULTS

    const char *af_fault_name(unsigned fault) noexcept

    struct af_fault_rule:
        uint32_t kinds, drop_ppm, burst_ppm, burst_frames, repeat_ppm, copies, reorder_ppm, corrupt_ppm, truncate_ppm
        uint32_t stall_ppm, drop_first
        uint64_t delay_ns, reorder_ns, stall_ns, down_after_ns, down_for_ns, down_every_ns

    struct af_fault_line:
        uint64_t counts[AF_NB_FAULTS]
        uint32_t nb_held

    void af_fault_line_init(af_fault_line *line, const af_fault_rule *rule, uint64_t seed, uint32_t port,
                            uint32_t way) noexcept
    uint32_t af_fault_line_enter(af_fault_line *line, uint8_t *frame, uint32_t *len, uint64_t now) noexcept
    uint64_t af_fault_line_due(af_fault_line *line, uint8_t kind, uint64_t now) noexcept
    bint af_fault_line_hold(af_fault_line *line, uint64_t due, void *frame) noexcept
    void *af_fault_line_leave(af_fault_line *line, uint64_t now) noexcept


cdef extern from "aiflow/rt/sampler.h" nogil:
    struct af_port_sample:
        uint64_t frames, bytes, sent, arrived
        uint32_t queued, capacity

    struct af_sample:
        uint64_t ns
        af_port_sample ports[AF_MAX_PORTS]

    struct af_sampler:
        uint64_t interval_ns

    bint af_sampler_read(af_sampler *sampler, af_sample *older, af_sample *newer) noexcept


cdef extern from "aiflow/rt/chrono.h" nogil:
    enum:
        AF_CHRONO_STATES

    struct af_chrono:
        pass

    void af_chrono_note(af_chrono *chrono, uint32_t state, uint64_t now) noexcept
    void af_chrono_read(af_chrono *chrono, uint64_t now, uint64_t *ns) noexcept


cdef extern from "aiflow/path/pacer.h" nogil:
    struct af_pace:
        bint rate_based
        double frame_ns, byte_ns, gain, threshold, widened, gap_ns
        uint64_t slack_ns, signals

    void af_pace_reset(af_pace *pace) noexcept


cdef extern from "aiflow/tx/tx_agent.h" nogil:
    enum:
        AF_TX_QUEUED
        AF_TX_ASKING
        AF_TX_DONE
        AF_NB_TX_ERRORS
        AF_NB_TX_WAITS
        AF_OTHERS

    const char *af_tx_error_name(unsigned error) noexcept
    const char *af_tx_wait_name(unsigned wait) noexcept

    struct af_tx_ended:
        uint64_t slices, elements, bytes, frames, retransmits, ns, failed

    struct af_tx_whole:
        pass

    struct af_dispatch:
        uint32_t ports
        bint elements, by_share, shortest
        uint64_t share_bytes[AF_MAX_PORTS]

    struct af_rival:
        char name[AF_NAME_BYTES]
        uint8_t mac[6]
        uint64_t epoch

    struct af_tx_loans:
        uint64_t pool
        af_loan **held
        uint32_t nb_held, nb_pieces
        af_loan_piece *pieces
        uint32_t manifest_bytes

    struct af_tx_slice:
        const af_span *elements
        uint8_t *manifest
        uint64_t nbytes, posted_ns
        uint32_t nb_elements, manifest_bytes, receiver
        af_tx_loans *loans
        af_dispatch dispatch
        af_tx_whole *whole
        af_tx_slice *next
        int state, cancel
        uint64_t acked_bytes
        int error
        bint all_sent, held, lent
        uint64_t detail
        char *text
        uint32_t text_got
        uint32_t id, payload_bytes, nb_manifest, nb_data, nb_chunks
        uint64_t joined_ns, granted_ns, done_ns, frames, retransmits, placed_bytes
        uint64_t port_frames[AF_MAX_PORTS]
        uint64_t port_bytes[AF_MAX_PORTS]

    struct af_candidate:
        uint16_t port
        uint64_t epoch

    struct af_tx_pktnum:
        uint64_t rtt_ns, seen
        uint32_t in_flight, limit, spurious

    struct af_tx_port:
        af_agent_port p
        af_port_counters count
        bint open, suspended
        uint8_t dst[6]
        uint32_t path_size, nb_candidates
        uint64_t attached_ns, arrived
        uint64_t began[2]
        af_candidate candidates[AF_MAX_PORTS]
        af_pace pace
        af_chrono flight
        af_tx_pktnum pn

    struct af_tx:
        af_span tail
        char name[AF_NAME_BYTES]
        char to[AF_NAME_BYTES]
        uint64_t instance, peer_timeout_ns, clock_offset_ns
        af_numbers *numbers
        uint32_t nb_expected
        bint fixed_frame_size, joining
        af_tx_port ports[AF_MAX_PORTS]
        uint32_t nb_ports
        bint open, closing, keeps_mbufs, bye_heard, death_unreported
        char receiver[AF_NAME_BYTES]
        char others[AF_OTHERS][AF_NAME_BYTES]
        af_rival rivals[2]
        uint8_t drop
        uint32_t nb_dropped
        uint64_t peer_free_bytes
        uint32_t number, session, payload_bytes, first_id, next_id
        af_tx_slice *queue
        void *retransmit
        uint64_t drops[AF_NB_DROPS]
        uint64_t feedbacks, probes
        af_tx_ended ended
        af_tx_ended *sends
        af_chrono waits
        af_sampler sampler

    int af_tx_init(af_tx *tx) noexcept
    af_tx_whole *af_tx_begin(uint32_t parts, uint64_t now) noexcept
    void af_tx_give_up_rest(af_tx_ended *sends, af_tx_whole *whole) noexcept
    bint af_tx_is_pressed(const af_tx *tx) noexcept
    void af_tx_enqueue(af_tx *tx, af_tx_slice *s) noexcept
    void af_tx_fail_all(af_tx *tx, int error, uint64_t now) noexcept
    void af_tx_detach(af_tx *tx, uint32_t p, uint64_t now) noexcept
    bint af_tx_on_frame(void *state, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len,
                        void *handle) noexcept
    uint32_t af_tx_next_frame(void *state, uint32_t p, uint64_t now, af_budget *budget, uint8_t *frame) noexcept
    bint af_tx_tick(void *state, uint64_t now) noexcept
    bint af_tx_owns(const void *state, uint32_t number) noexcept
    af_load af_tx_load(const void *state, uint32_t p) noexcept


cdef extern from "aiflow/tx/tx_due.h" nogil:
    uint64_t af_tx_due(void *state, uint64_t now) noexcept


cdef extern from "aiflow/wire/verdict.h" nogil:
    struct af_verdicts:
        pass

    bint af_verdicts_push(af_verdicts *verdicts, uint32_t session, uint32_t slice, bint failed, const char *text,
                          uint32_t nbytes) noexcept
    void af_verdicts_free(af_verdicts *verdicts) noexcept


cdef extern from "aiflow/rx/rx_agent.h" nogil:
    enum:
        AF_NB_RX_WAITS

    uint64_t af_rx_need(const af_extent *extent, uint64_t manifest_bytes, uint64_t nb_chunks, uint64_t nb_data,
                        uint64_t mbuf_bytes) noexcept

    struct af_rx_element:
        uint64_t offset, nbytes, latency_ns
        uint32_t first_chunk, packed

    struct af_kept:
        void *handle
        const uint8_t *payload
        uint32_t nbytes

    struct af_rx_slice:
        af_rx_slice *next
        char sender[AF_NAME_BYTES]
        uint64_t instance
        uint32_t session_id
        uint32_t id, manifest_bytes, runs_bytes, payload_bytes, nb_data, nb_elements
        uint64_t nbytes, first_ns, whole_ns, frames
        af_borrowed *borrowed
        uint8_t *manifest
        af_rx_element *elements
        af_kept *kept
        uint64_t charge_bytes
        af_arena *arena
        af_block *block
        af_into *into

    struct af_rx_port:
        af_agent_port p
        af_port_counters count
        uint32_t nb_paths
        uint64_t sent, arrived

    struct af_rx:
        char name[AF_NAME_BYTES]
        uint64_t epoch, peer_timeout_ns, clock_offset_ns
        bint keeps_mbufs, confirms, checks_places, borrows
        af_numbers *numbers
        af_verdicts *verdicts
        uint64_t mbuf_bytes
        void (*release)(void *handle) noexcept nogil
        af_arena *arena
        af_rx_port ports[AF_MAX_PORTS]
        uint32_t nb_ports, nb_sessions, nb_seen, nb_closed, nb_gone, flowing, releases
        af_rx_slice *waiting
        af_rx_slice *ready
        af_rx_slice **ready_tail
        af_offer offer
        uint64_t taken
        uint64_t starving_ns, starving_bytes, progress_bytes, progress_total
        uint64_t drops[AF_NB_DROPS]
        uint64_t slices, elements, bytes, placed_bytes
        af_chrono waits
        af_sampler sampler

    void af_rx_offer(af_rx *rx, af_into *into) noexcept
    uint8_t *af_rx_element_at(const af_rx_slice *s, const af_rx_element *el) noexcept
    void af_rx_give_back(af_rx_slice *s) noexcept
    bint af_rx_is_one_piece(const af_rx_slice *s, uint32_t first, uint32_t count) noexcept
    const char *af_rx_wait_name(unsigned wait) noexcept
    void af_rx_init(af_rx *rx) noexcept
    void af_rx_free(af_rx *rx) noexcept
    void af_rx_hear_verdicts(af_rx *rx) noexcept
    void af_rx_fail_pending(af_rx *rx, const char *text, uint32_t nbytes) noexcept
    void af_rx_detach(af_rx *rx, uint32_t p) noexcept
    void af_rx_writer_gone(af_rx *rx, uint32_t connection) noexcept
    void af_rx_part(af_rx *rx) noexcept
    bint af_rx_owes_bye(const af_rx *rx) noexcept
    bint af_rx_owes(const af_rx *rx) noexcept
    void af_rx_slice_free(af_rx_slice *s, void (*release)(void *handle) noexcept nogil) noexcept
    bint af_rx_on_frame(void *state, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len,
                        void *handle) noexcept
    uint32_t af_rx_next_frame(void *state, uint32_t p, uint64_t now, af_budget *budget, uint8_t *frame) noexcept
    bint af_rx_tick(void *state, uint64_t now) noexcept
    bint af_rx_owns(const void *state, uint32_t number) noexcept


cdef extern from "aiflow/rx/rx_due.h" nogil:
    uint64_t af_rx_due(void *state, uint64_t now) noexcept
