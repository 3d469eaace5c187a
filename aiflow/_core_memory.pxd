# Element memory of the plain-C core, as the data plane sees it. Declarations only; the headers say what they mean.

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "aiflow/rt/memory_room.h" nogil:
    enum:
        AF_ROOM_GROUPS
        AF_ROOM_PATH

    struct af_memory_groups:
        uint32_t nb
        char paths[AF_ROOM_GROUPS][AF_ROOM_PATH]

    uint64_t af_memory_room(const af_memory_groups *groups) noexcept


cdef extern from "aiflow/rx/arena.h" nogil:
    enum af_fill:
        AF_FILL_DONE
        AF_FILL_MORE
        AF_FILL_FAILED

    struct af_block:
        uint64_t offset, size, charged
        bint fenced

    enum af_arena_kind:
        AF_ARENA_NONE
        AF_ARENA_PRIVATE
        AF_ARENA_SHARED

    struct af_arena:
        uint8_t *base
        uint64_t limit, used, address_space, warm, fenced
        int fd
        uint64_t (*room)(const af_memory_groups *groups) noexcept nogil
        const af_memory_groups *groups
        uint32_t releases

    int af_arena_init(af_arena *arena, uint64_t limit, af_arena_kind kind) noexcept
    bint af_arena_warm(af_arena *arena) noexcept
    void af_arena_free(af_arena *arena, bint ours) noexcept
    void af_arena_trim(af_arena *arena) noexcept
    af_block *af_arena_take(af_arena *arena, uint64_t nbytes, uint64_t charged) noexcept
    af_fill af_arena_fill(af_arena *arena, af_block *block, uint64_t most) noexcept
    void af_arena_give(af_arena *arena, af_block *block) noexcept


cdef extern from "aiflow/rx/user_block.h" nogil:
    void af_arena_shrink(af_arena *arena, af_block *block, uint64_t charged) noexcept
    af_block *af_arena_block_at(af_arena *arena, const void *address) noexcept


cdef extern from "aiflow/rx/into.h" nogil:
    enum:
        AF_INTO_STREAMS

    struct af_into_stream:
        const uint8_t *stream
        const uint8_t *rows
        const uint8_t *alone
        uint32_t stream_len, rows_len, alone_len, nb_rows
        uint64_t nbytes
        uint8_t *to

    struct af_into:
        uint32_t nb_streams
        af_into_stream streams[AF_INTO_STREAMS]
        af_block *block
        bint wanted, bound, freed

    struct af_offer:
        pass

    bint af_offer_withdraw(af_offer *offer, af_into *into) noexcept
