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
    struct af_block:
        uint64_t offset, size, charged

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
